"""What goes to which executor, from which bundle: several executors, a team's, git; callbacks and connection tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.testing import wait_until
from headrace_airflow.bench.processes import command_line

pytestmark = pytest.mark.shares_runtime

TWO_EXECUTORS = """
import os
from airflow.sdk import dag, task

def is_warm():
    return "headrace zygote" in open(f"/proc/{os.getppid()}/cmdline").read()

@dag(schedule=None)
def two_executors():
    task(task_id="on_headrace", executor="headrace")(is_warm)()
    task(task_id="on_local", executor="LocalExecutor")(is_warm)()
    task(task_id="on_the_first")(is_warm)()
two_executors()
"""


def daemons(airflow: Any) -> set[int]:
    return {pid for pid in airflow.family.pids() if "headrace_airflow.daemon" in command_line(pid)}


class TestExecutors:
    def test_a_task_goes_where_it_says(self, airflow: Any) -> None:
        airflow.write_dag("two_executors.py", TWO_EXECUTORS)
        run = airflow.run("two_executors")
        assert run.state == "success", airflow.why(run)
        found = [airflow.xcom(run, name) for name in ("on_headrace", "on_local", "on_the_first")]
        assert found == [True, False, True]
        (airflow.home.dags / "two_executors.py").unlink()

    def test_a_team_has_a_daemon_of_its_own(self, airflow: Any, tmp_path: Path) -> None:
        runs = {}
        for dag_id in ("gate", "of_blue"):
            runs[dag_id] = airflow.trigger(dag_id, {"file": str(tmp_path / "open")})
            airflow.wait_for_task(runs[dag_id], "wait_for", {"running"})
        tasks = [psutil.Process(airflow.task(run, "wait_for").pid) for run in runs.values()]
        of_all, of_blue = ({parent.pid for parent in task.parents()} & daemons(airflow) for task in tasks)
        assert len(of_all) == len(of_blue) == 1
        assert of_all != of_blue
        line = [sys.executable, "-m", "airflow", "headrace", "status", "--team", "blue"]
        shown = subprocess.run(line, env=airflow.environment, capture_output=True, text=True, check=True).stdout
        assert shown.startswith(f"daemon {of_blue.pop()},")
        (tmp_path / "open").touch()
        assert {airflow.wait(run).state for run in runs.values()} == {"success"}


class TestBundles:
    def test_a_run_keeps_its_version(self, airflow: Any, repository: Any, tmp_path: Path) -> None:
        old = airflow.trigger("versions", {"folder": str(tmp_path)})
        airflow.wait_for_task(old, "before", {"running"})

        def newest() -> str:
            found: str = airflow.api.get("/dags/versions")["bundle_version"]
            return found

        version = newest()
        repository.commit("second")
        wait_until(lambda: newest() != version, timeout_s=60)
        (tmp_path / "gate").touch()
        assert airflow.wait(old).state == "success", airflow.why(old)
        assert [airflow.xcom(old, name) for name in ("before", "after")] == ["first", "first"]
        new = airflow.run("versions", {"folder": str(tmp_path)})
        assert [airflow.xcom(new, name) for name in ("before", "after")] == ["second", "second"]

    def test_is_held_parsed_once_a_task_has_found_it(self, airflow: Any, tmp_path: Path) -> None:
        """A zygote cannot ask for the connection that this one asks for."""
        (tmp_path / "gate").touch()
        run = airflow.run("versions", {"folder": str(tmp_path)})
        assert run.state == "success", airflow.why(run)
        held = [pid for pid in airflow.family.pids() if "headrace zygote: versions.py" in command_line(pid)]
        assert held


class TestOtherWorkloads:
    def test_callbacks_of_deadlines(self, airflow: Any, tmp_path: Path) -> None:
        run = airflow.run("has_a_deadline", {"folder": str(tmp_path)})
        assert run.state == "success", airflow.describe(run)
        assert (tmp_path / "told").read_text() == "late"

        def states() -> dict[str, str]:
            rows = airflow.sql("SELECT CAST(data AS TEXT), state FROM callback")
            return {name: state for data, state in rows for name in ("tells", "fails") if f".{name}" in data}

        wait_until(lambda: states() == {"tells": "success", "fails": "failed"}, timeout_s=30)

    @pytest.mark.parametrize(("path", "state"), [("/", "success"), ("/nothing/there", "failed")])
    def test_of_connections(self, airflow: Any, path: str, state: str) -> None:
        body = {"connection_id": "tried", "conn_type": "fs", "extra": json.dumps({"path": path})}
        token = airflow.api.request("POST", "/connections/enqueue-test", json=body).json()["token"]

        def result() -> Any:
            headers = {"Airflow-Connection-Test-Token": token}
            return airflow.api.request("GET", "/connections/enqueue-test", headers=headers).json()

        wait_until(lambda: result()["state"] in ("success", "failed"), timeout_s=60)
        assert (result()["state"], path in result()["result_message"]) == (state, True)
