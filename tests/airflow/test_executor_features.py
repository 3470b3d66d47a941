"""What Airflow can do with a task, done by HeadraceExecutor; and DAG files that change."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from headrace.testing import wait_until
from headrace_airflow.bench.client import DagRun, errors_in

STATES = {
    "success": """
        bash branches calls_back configured configured_elsewhere defers elsewhere forks group.inner
        in_an_environment_of_its_own is_fine joins priority_1 priority_5 priority_9 random_0 random_1 reads reschedules
        retries runs_all_the_same sees_a_failure sees_no_secret sees_only_failures several short_circuits sets_up taken
        tears_down templates three total unpicklable_and_large updates
    """,
    "skipped": "cut_off not_taken skips",
    "failed": "fails times_out",
    "upstream_failed": "upstream_fails",
}

pytestmark = pytest.mark.shares_runtime


@pytest.fixture(scope="module", params=["airflow_on_sqlite", "airflow_on_postgres"])
def anywhere(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, anywhere: Any) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def run(anywhere: Any, folder: Path) -> Any:
    anywhere.api.request("POST", "/pools", json={"name": "one_at_a_time", "slots": 1})
    anywhere.wait_for_dags({"consumes"})
    anywhere.api.set_paused("consumes", False)
    return anywhere.run("features", {"folder": str(folder)}, timeout_s=240)


class TestFeatures:
    def test_states(self, anywhere: Any, run: Any) -> None:
        expected = {name: state for state, names in STATES.items() for name in names.split()}
        expected |= {f"double[{index}]": "success" for index in range(3)}
        assert {task.name: task.state for task in anywhere.tasks(run)} == expected
        assert run.state == "failed"

    def test_tries(self, anywhere: Any, run: Any) -> None:
        tries = {task.name: task.try_number for task in anywhere.tasks(run) if task.try_number != 1}
        assert tries == {"retries": 3, "cut_off": 0, "not_taken": 0, "upstream_fails": 0}

    @pytest.mark.parametrize(
        ("task", "value"),
        [
            ("defers", True),
            ("total", 12),
            ("bash", "42"),
            ("templates", "8 templates"),
            ("elsewhere", 2),
            ("in_an_environment_of_its_own", [2, True, False]),
            ("configured_elsewhere", ["kept", "vault"]),
            ("reads", [1, [2]]),
            ("configured", ["value", "host", "mine"]),
        ],
    )
    def test_values(self, anywhere: Any, run: Any, task: str, value: object) -> None:
        assert anywhere.xcom(run, task) == value

    def test_callbacks(self, run: Any, folder: Path) -> None:
        expected = ["failure of the run", "failure times_out", "retry retries", "retry retries", "success calls_back"]
        # The run's own is called by the DAG processor, when it is there.
        wait_until(lambda: sorted((folder / "called").read_text().splitlines()) == expected, timeout_s=60)

    def test_the_most_urgent_goes_first_where_there_is_room_for_one(self, anywhere: Any, run: Any) -> None:
        tasks = [anywhere.task(run, f"priority_{number}") for number in (9, 5, 1)]
        assert all(task.end_date <= after.start_date for task, after in pairwise(tasks))

    def test_an_asset_starts_who_waits_for_it(self, anywhere: Any, run: Any) -> None:
        def started() -> Any:
            return anywhere.api.get("/dags/consumes/dagRuns")["dag_runs"]

        wait_until(started, timeout_s=60)
        assert anywhere.wait(DagRun.of(started()[0])).state == "success"
        assert anywhere.xcom(DagRun.of(started()[0]), "rows") == [3]

    def test_no_secret_is_seen(self, anywhere: Any, run: Any) -> None:
        secret, database = anywhere.xcom(run, "sees_no_secret")
        assert secret == ""
        assert anywhere.database_url not in database

    def test_children_of_one_process_draw_different_numbers(self, anywhere: Any, run: Any) -> None:
        assert anywhere.xcom(run, "random_0") != anywhere.xcom(run, "random_1")

    def test_output_is_logged_whole(self, anywhere: Any, run: Any) -> None:
        log = anywhere.log(run, "unpicklable_and_large")
        assert log.count("x") >= 3_000_000
        assert "no newline at the end" in log

    def test_what_has_logged_while_its_file_was_parsed_logs_on(self, anywhere: Any, run: Any) -> None:
        assert "It defers" in errors_in(anywhere.api.log(run, "defers", 1, -1))

    def test_the_log_says_why(self, anywhere: Any, run: Any) -> None:
        assert "AirflowTaskTimeout" in anywhere.log(run, "times_out")
        assert "not yet" in anywhere.log(run, "retries", 1)

    def test_rendered_fields_are_stored(self, anywhere: Any, run: Any) -> None:
        task = anywhere.api.get(f"{run.path}/taskInstances/templates")
        assert task["rendered_fields"]["bash_command"] == "echo 8 templates"


IMPORTS_LATE = """
from airflow.sdk import dag, task

@dag(schedule=None)
def {name}():
    @task
    def imports(before):
        import os, sys
        {first}
        was_there = "scipy" in sys.modules
        import scipy
        return [*before, was_there]
    imports(imports(imports([])))
{name}()
"""


class TestImportsOfTasks:
    """Each task says whether a large library, which it imports when it runs, was there before."""

    def found(self, airflow: Any, name: str, first: str) -> Any:
        path = airflow.write_dag(f"{name}.py", IMPORTS_LATE.format(name=name, first=first))
        airflow.wait_for_dags({name})
        run = airflow.run(name)
        path.unlink()
        return airflow.xcom(run, "imports__2")

    def test_are_there_for_later_tasks(self, airflow: Any) -> None:
        first, _, third = self.found(airflow, "imports_late", first="")
        assert (first, third) == (False, True)

    def test_unless_tasks_set_up_what_they_read(self, airflow: Any) -> None:
        first = 'os.environ["OMP_NUM_THREADS"] = "1"'
        assert self.found(airflow, "imports_late_and_sets_up", first) == [False, False, False]


OPTIONAL = """
import changes_shadowed
from airflow.sdk import dag, task
try:
    from changes_optional import VALUE
except ImportError:
    VALUE = "none"

@dag(schedule=None)
def changes():
    @task
    def says():
        return [VALUE, changes_shadowed.VALUE]
    says()
changes()
"""

VERSIONED = """
from airflow.sdk import dag, task
import {module}

@dag(schedule=None)
def changes():
    @task
    def says():
        return [{value!r}, {module}.VALUE]
    says()
changes()
"""


PLUGIN = """
from airflow.plugins_manager import AirflowPlugin

def word():
    return {word!r}

class OfTheTests(AirflowPlugin):
    name = "of_the_tests"
    macros = [word]
"""

USES_A_PLUGIN = """
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag

@dag(schedule=None)
def uses_a_plugin():
    BashOperator(task_id="says", bash_command="echo {{ macros.of_the_tests.word() }}")
uses_a_plugin()
"""


class TestChanges:
    def say(self, airflow: Any) -> Any:
        run = airflow.run("changes")
        assert run.state == "success", airflow.log(run, "says")
        return airflow.xcom(run, "says")

    def test_are_seen_at_once(self, airflow: Any) -> None:
        airflow.write_dag("helper_one.py", "VALUE = 1")
        airflow.write_dag("changes.py", VERSIONED.format(module="helper_one", value="first"))
        assert self.say(airflow) == ["first", 1]
        assert self.say(airflow) == ["first", 1]
        airflow.write_dag("helper_one.py", "VALUE = 2")  # a module
        assert self.say(airflow) == ["first", 2]
        airflow.write_dag("changes.py", VERSIONED.format(module="helper_one", value="second"))  # the file
        assert self.say(airflow) == ["second", 2]
        airflow.write_dag("helper_two.py", "VALUE = 3")  # another module
        airflow.write_dag("changes.py", VERSIONED.format(module="helper_two", value="third"))
        assert self.say(airflow) == ["third", 3]
        (airflow.home.dags / "helper_two.py").unlink()  # a module that is gone
        run = airflow.trigger("changes")
        assert airflow.wait(run).state == "failed"
        assert "helper_two" in airflow.log(run, "says")
        airflow.write_dag("helper_two.py", "VALUE =")  # a syntax error
        run = airflow.trigger("changes")
        assert airflow.wait(run).state == "failed"
        assert "SyntaxError" in airflow.log(run, "says")
        airflow.write_dag("helper_two.py", "VALUE = 4")
        assert self.say(airflow) == ["third", 4]
        for name in ("changes.py", "helper_one.py", "helper_two.py"):
            (airflow.home.dags / name).unlink()

    def test_of_what_was_not_there_too(self, airflow: Any) -> None:
        dags = airflow.home.dags
        airflow.write_dag("changes_shadowed.py", "VALUE = 'module'")
        airflow.write_dag("changes.py", OPTIONAL)
        assert self.say(airflow) == ["none", "module"]
        airflow.write_dag("changes_optional.py", "VALUE = 'there'")  # it appears
        assert self.say(airflow) == ["there", "module"]
        (dags / "changes_optional.py").rename(dags / "changes_optional.aside")
        assert self.say(airflow) == ["none", "module"]
        (dags / "changes_optional.aside").rename(dags / "changes_optional.py")  # as old as it was
        assert self.say(airflow) == ["there", "module"]
        (dags / "changes_shadowed").mkdir()
        airflow.write_dag("changes_shadowed/__init__.py", "VALUE = 'package'")  # it comes before the module
        assert self.say(airflow) == ["there", "package"]
        shutil.rmtree(dags / "changes_shadowed")
        for name in ("changes.py", "changes_optional.py", "changes_shadowed.py"):
            (dags / name).unlink()

    def test_of_a_plugin_too(self, airflow: Any) -> None:
        path = airflow.home.plugins / "of_the_tests.py"
        airflow.write_dag("uses_a_plugin.py", USES_A_PLUGIN)
        airflow.wait_for_dags({"uses_a_plugin"})
        for word in ("one", "two"):
            path.write_text(PLUGIN.format(word=word))
            run = airflow.run("uses_a_plugin")
            assert (run.state, airflow.xcom(run, "says")) == ("success", word)
        path.unlink()
        (airflow.home.dags / "uses_a_plugin.py").unlink()
