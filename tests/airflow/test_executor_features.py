"""What Airflow can do with a task, done by HeadraceExecutor; and DAG files that change, or misbehave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DAGS = Path(__file__).parent / "executor_dags"
SETTINGS = {
    "AIRFLOW_VAR_FROM_ENVIRONMENT": "value",
    "AIRFLOW_CONN_FROM_ENVIRONMENT": "http://host/",
    "MINE": "mine",
    "AIRFLOW__WORKERS__MISSING_DAG_RETRIES": "0",
}
STATES = {
    "success": (
        "bash branches calls_back configured defers elsewhere forks group.inner random_0 random_1 reads reschedules "
        "retries runs_all_the_same sees_no_secret several short_circuits sets_up taken tears_down templates three "
        "total unpicklable_and_large updates"
    ),
    "skipped": "cut_off not_taken skips",
    "failed": "fails times_out",
    "upstream_failed": "upstream_fails",
}

pytestmark = pytest.mark.shares_runtime


@pytest.fixture(scope="module")
def airflow(make_shared_airflow: Callable[..., Any]) -> Any:
    return make_shared_airflow("sqlite", dags=DAGS, settings=SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def run(airflow: Any, folder: Path) -> Any:
    return airflow.run("features", {"folder": str(folder)}, timeout_s=240)


class TestFeatures:
    def test_states(self, airflow: Any, run: Any) -> None:
        expected = {name: state for state, names in STATES.items() for name in names.split()}
        expected |= {f"double[{index}]": "success" for index in range(3)}
        assert {task.name: task.state for task in airflow.tasks(run)} == expected
        assert run.state == "failed"

    def test_tries(self, airflow: Any, run: Any) -> None:
        tries = {task.name: task.try_number for task in airflow.tasks(run) if task.try_number != 1}
        assert tries == {"retries": 3, "cut_off": 0, "not_taken": 0, "upstream_fails": 0}

    @pytest.mark.parametrize(
        ("task", "value"),
        [
            ("defers", True),
            ("total", 12),
            ("bash", "42"),
            ("templates", "8 templates"),
            ("elsewhere", 2),
            ("reads", [1, [2]]),
            ("configured", ["value", "host", "mine"]),
        ],
    )
    def test_values(self, airflow: Any, run: Any, task: str, value: object) -> None:
        assert airflow.xcom(run, task) == value

    def test_callbacks(self, run: Any, folder: Path) -> None:
        called = sorted((folder / "called").read_text().splitlines())
        assert called == ["failure times_out", "retry retries", "retry retries", "success calls_back"]

    def test_no_secret_is_seen(self, airflow: Any, run: Any) -> None:
        secret, database = airflow.xcom(run, "sees_no_secret")
        assert secret == ""
        assert airflow.database_url not in database

    def test_children_of_one_process_draw_different_numbers(self, airflow: Any, run: Any) -> None:
        assert airflow.xcom(run, "random_0") != airflow.xcom(run, "random_1")

    def test_output_is_logged_whole(self, airflow: Any, run: Any) -> None:
        log = airflow.log(run, "unpicklable_and_large")
        assert log.count("x") >= 3_000_000
        assert "no newline at the end" in log

    def test_the_log_says_why(self, airflow: Any, run: Any) -> None:
        assert "AirflowTaskTimeout" in airflow.log(run, "times_out")
        assert "ValueError: not yet" in airflow.log(run, "retries", 1) or "not yet" in airflow.log(run, "retries", 1)

    def test_rendered_fields_are_stored(self, airflow: Any, run: Any) -> None:
        task = airflow.api.get(f"{run.path}/taskInstances/templates")
        assert task["rendered_fields"]["bash_command"] == "echo 8 templates"


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


EXITS = """
import sys
from airflow.sdk import dag, task

@dag(schedule=None)
def exits():
    @task
    def one():
        return 1
    one()
exits()
if "dag-processor" not in sys.argv:
    sys.exit(7)
"""


class TestMisbehaviour:
    def test_a_file_that_asks_for_a_variable(self, airflow: Any) -> None:
        for value in ("one", "two"):
            path = "/variables" if value == "one" else "/variables/asked_at_import"
            method = "POST" if value == "one" else "PATCH"
            airflow.api.request(method, path, json={"key": "asked_at_import", "value": value})
            run = airflow.run("asks_at_import")
            assert (run.state, airflow.xcom(run, "says")) == ("success", value)

    def test_a_file_that_leaks_threads(self, airflow: Any) -> None:
        run = airflow.run("leaks_threads")
        assert (run.state, airflow.xcom(run, "counts")) == ("success", 2)
        log = airflow.home.folder / "logs" / "headrace" / "daemon.log"
        assert "leaks_threads.py" in log.read_text()

    def test_a_file_that_exits(self, airflow: Any) -> None:
        airflow.write_dag("exits.py", EXITS)
        run = airflow.run("exits")
        assert run.state == "failed"
        log = airflow.log(run, "one")
        assert "Failed to import" in log
        assert "SystemExit" in log
        (airflow.home.dags / "exits.py").unlink()
