"""Bad input and bad luck on a real Airflow: a right state, a reason in the task's log, and nothing else harmed."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.testing import wait_until
from headrace_airflow import client, places
from headrace_airflow.bench.client import DagRun
from headrace_airflow.bench.processes import has_ended

pytestmark = pytest.mark.shares_runtime

OUTCOMES = {
    "closes_all_descriptors": ("failed", r"exited abnormally.*exit_code=125"),
    "crashes": ("failed", r"The task was killed by SIGSEGV"),
    "exits": ("failed", r"exited abnormally.*exit_code=3"),
    "finds_no_memory": ("failed", r"MemoryError"),
    "forks_and_returns_twice": ("success", r"Post Execute"),
    "is_killed_for_its_memory": ("failed", r"The task was killed by SIGKILL.*peak_memory_mib=[4-9]\d\d"),
    "leaves_a_thread": ("success", r"Post Execute"),
    "raises_oddly": ("failed", r"no exception at all"),
    "returns_a_generator": ("success", r"Returned value was: <3 streamed items>"),
    "returns_a_lock": ("failed", r"cannot pickle"),
    "sends_garbage": ("failed", r"supervisor has failed: ValidationError"),
}

FLOOD_BYTES = 200 << 20
"""What ``floods`` writes without a newline."""

AT_IMPORT = """
import sys, threading, time
from airflow.sdk import dag, task

@dag(schedule=None)
def {name}():
    @task
    def says():
        return threading.active_count()
    says()
{name}()
if "dag-processor" not in sys.argv:
    {does}
"""
AT_IMPORTS = {
    "exits_at_import": ("sys.exit(7)", "SystemExit"),
    "fails_at_import": ("raise LookupError('no such luck')", "no such luck"),
    "imports_for_a_minute": ("time.sleep(60)", "DagBag import timeout"),
}


@pytest.fixture(scope="module")
def triggered(airflow: Any) -> Iterator[dict[str, Any]]:
    """All runs of this module, side by side."""
    for name, (does, _) in AT_IMPORTS.items():
        airflow.write_dag(f"{name}.py", AT_IMPORT.format(name=name, does=does))
    names = [*AT_IMPORTS, "leaks_threads", "misbehaves", "reaps_children"]
    yield {name: airflow.trigger(name) for name in names}
    for name in AT_IMPORTS:
        (airflow.home.dags / f"{name}.py").unlink()


@pytest.fixture(scope="module")
def misbehaved(airflow: Any, triggered: dict[str, Any]) -> Any:
    return airflow.wait(triggered["misbehaves"])


def group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:  # it has just ended
        return 0


class TestTasks:
    def test_that_is_all(self, airflow: Any, misbehaved: Any) -> None:
        expected = {"floods": "success", **{name: state for name, (state, _) in OUTCOMES.items()}}
        assert {task.name: task.state for task in airflow.tasks(misbehaved)} == expected

    @pytest.mark.parametrize("name", OUTCOMES)
    def test_say_what_became_of_them(self, airflow: Any, misbehaved: Any, name: str) -> None:
        log = airflow.log(misbehaved, name)
        assert re.search(OUTCOMES[name][1], log, re.DOTALL), log[-3000:]

    def test_have_all_that_they_wrote_in_their_logs(self, airflow: Any, misbehaved: Any) -> None:
        folder = airflow.home.folder / "logs" / f"dag_id={misbehaved.dag_id}" / f"run_id={misbehaved.run_id}"
        with open(folder / "task_id=floods" / "attempt=1.log", "rb") as log:
            written = sum(len(found[1]) for line in log if (found := re.search(rb'"event": ?"(x+)"', line)))
        assert written == FLOOD_BYTES

    def test_leave_nothing_behind(self, airflow: Any, misbehaved: Any) -> None:
        groups = {task.pid for task in airflow.tasks(misbehaved)}

        def left() -> list[int]:
            return [pid for pid in airflow.family.pids() if group_of(pid) in groups]

        wait_until(lambda: not left(), timeout_s=30)


class TestFiles:
    def test_that_leaks_threads(self, airflow: Any, triggered: dict[str, Any]) -> None:
        run = airflow.wait(triggered["leaks_threads"])
        assert (run.state, airflow.xcom(run, "counts")) == ("success", 2)
        log = airflow.home.folder / "logs" / "headrace" / "daemon.log"
        assert re.search(r"leaks_threads\.py.*must not be forked", log.read_text())

    def test_that_reaps_children(self, airflow: Any, triggered: dict[str, Any]) -> None:
        run = airflow.wait(triggered["reaps_children"])
        found = [airflow.xcom(run, "starts_a_child", map_index=number) for number in range(3)]
        assert (run.state, found) == ("success", [[0, True], [1, True], [2, True]])
        log = airflow.home.folder / "logs" / "headrace" / "daemon.log"
        assert not re.search(
            r"(tasks|zygote) of .*reaps_children\.py", log.read_text()
        )  # it has held the file, and lives

    def test_that_asks_for_a_variable(self, airflow: Any) -> None:
        for value in ("one", "two"):
            path = "/variables" if value == "one" else "/variables/asked_at_import"
            method = "POST" if value == "one" else "PATCH"
            airflow.api.request(method, path, json={"key": "asked_at_import", "value": value})
            run = airflow.run("asks_at_import")
            assert (run.state, airflow.xcom(run, "says")) == ("success", value)

    def test_hold_back_no_other(self, airflow: Any, triggered: dict[str, Any]) -> None:
        assert airflow.run("arithmetic").state == "success"


def test_a_task_that_ignores_sigterm_ends_all_the_same(airflow: Any, tmp_path: Path) -> None:
    run = airflow.trigger("stubborn", {"folder": str(tmp_path)})
    task = airflow.wait_for_task(run, "ignores_sigterm", {"running"})
    wait_until((tmp_path / "said").exists, timeout_s=30)
    airflow.api.request("PATCH", f"{run.path}/taskInstances/ignores_sigterm", json={"new_state": "failed"})
    wait_until(lambda: has_ended(task.pid), timeout_s=30)
    assert airflow.wait(run).state == "failed"


def test_a_full_disk_fails_the_task_and_no_other(airflow: Any) -> None:
    run_id = f"on_a_full_disk_{uuid.uuid4().hex}"
    path = f"dag_id=arithmetic/run_id={run_id}/task_id=three/attempt=1.log"
    log = airflow.home.folder / "logs" / path
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    beside = airflow.trigger("arithmetic")
    body = {"dag_run_id": run_id, "logical_date": None}
    run = DagRun.of(airflow.api.request("POST", "/dags/arithmetic/dagRuns", json=body).json())
    assert airflow.wait(run).state == "failed"
    assert airflow.wait(beside).state == "success"


TELLS_TIME = """
import time
from airflow.sdk import dag, task

@dag(schedule=None)
def tells_time():
    task(task_id="now")(time.time)()
tells_time()
"""


class Clock:
    """The time of day as Python's ``time.time`` tells it in every process of an Airflow."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ahead"
        self.jump(0.0)
        modules = [os.fspath(Path(__file__).with_name("clock")), os.environ.get("PYTHONPATH", "")]
        self.settings = {"PYTHONPATH": os.pathsep.join(filter(None, modules)), "CLOCK_AHEAD": str(self._file)}

    def jump(self, ahead_s: float) -> None:
        """Has the clock be ahead of the real one by so much."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:  # in place: it is mapped
            file.write(struct.pack("d", ahead_s))


def test_a_jump_of_the_clock_concerns_no_task(make_airflow: Callable[..., Any], tmp_path: Path) -> None:
    clock = Clock(tmp_path)
    airflow = make_airflow(settings=clock.settings)
    airflow.write_dag("tells_time.py", TELLS_TIME)
    run = airflow.trigger("gated_once", {"folder": str(tmp_path)})
    wait_until((tmp_path / "said").exists, timeout_s=60)
    query = "SELECT last_heartbeat_at FROM task_instance WHERE run_id = :run"
    for ahead_s in (86400.0, -86400.0):
        clock.jump(ahead_s)
        before = airflow.sql(query, run=run.run_id)
        airflow.wait_until(lambda before=before: airflow.sql(query, run=run.run_id) != before, "a heartbeat")
        other = airflow.run("tells_time")
        assert other.state == "success"
        assert abs(airflow.xcom(other, "now") - time.time() - ahead_s) < 3600.0
    (tmp_path / "gate").touch()
    assert airflow.wait(run).state == "success"
    assert airflow.task(run, "work").try_number == 1


TELLS_MARK = """
import os
from airflow.sdk import dag, task

@dag(schedule=None)
def tells_mark():
    task(task_id="mark")(lambda: os.environ["MARK"])()
tells_mark()
"""


def test_a_scheduler_that_comes_with_other_settings_has_tasks_run_with_these(
    make_airflow: Callable[..., Any], tmp_path: Path
) -> None:
    airflow = make_airflow(settings={"MARK": "old"})
    airflow.write_dag("tells_mark.py", TELLS_MARK)
    busy = airflow.trigger("gated_once", {"folder": str(tmp_path)})
    wait_until((tmp_path / "said").exists, timeout_s=60)
    airflow.kill("scheduler")
    airflow.environment["MARK"] = "new"
    airflow.start("scheduler")
    assert airflow.xcom(airflow.run("tells_mark"), "mark") == "old"  # not while something runs
    (tmp_path / "gate").touch()
    assert airflow.wait(busy).state == "success"
    assert airflow.task(busy, "work").try_number == 1
    log = airflow.home.folder / "logs" / "headrace" / "daemon.log"
    airflow.wait_until(lambda: "makes way" in log.read_text(), "the end of the first daemon")
    assert airflow.xcom(airflow.run("tells_mark"), "mark") == "new"


TOKEN = """
import sys
from airflow.executors.base_executor import BaseExecutor
from airflow.executors.workloads.base import BaseWorkloadSchema
generator = BaseExecutor().jwt_generator
print("token:", generator.generate(extras={"sub": sys.argv[1], "scope": "workload"}, valid_for=float(sys.argv[2])))
"""


class TestSubmitted:
    """Workloads as the executor sends them, with something wrong."""

    @pytest.fixture
    def daemon(self, airflow: Any) -> Iterator[Any]:
        base = str(airflow.home.temporary / f"headrace-{os.getuid()}")
        place = places.folder(str(airflow.home.folder), airflow.database_url, None, base)
        channel = client.connect(place, "test")
        assert channel is not None
        yield channel
        channel.close()

    def token(self, airflow: Any, task_id: str, valid_for_s: float) -> str:
        command = [sys.executable, "-c", TOKEN, task_id, str(valid_for_s)]
        done = subprocess.run(command, env=airflow.environment, capture_output=True, text=True, timeout=90, check=True)
        return done.stdout.rpartition("token: ")[2].strip()

    def submit(self, airflow: Any, daemon: Any, *, server: str = "", valid_for_s: float = 600) -> tuple[str, str]:
        """Has a task run for which there is a row; returns what the daemon and the log say."""
        run = airflow.run("arithmetic")
        task = airflow.task(run, "three")
        log_path = f"trouble-{uuid.uuid4().hex}.log"
        ti = {
            "id": task.id,
            "dag_version_id": airflow.api.get(f"{run.path}/taskInstances/three")["dag_version"]["id"],
            "task_id": "three",
            "dag_id": run.dag_id,
            "run_id": run.run_id,
            "try_number": 1,
            "map_index": -1,
            "pool_slots": 1,
            "priority_weight": 1,
            "queue": "default",
        }
        workload = {
            "type": "ExecuteTask",
            "ti": ti,
            "token": self.token(airflow, task.id, valid_for_s),
            "dag_rel_path": "arithmetic.py",
            "bundle_info": {"name": "dags-folder", "version": None},
            "log_path": log_path,
        }
        file = ["dags-folder", "", "arithmetic.py"]
        server = server or f"{airflow.home.url}/execution/"
        message = {
            "t": "submit",
            "id": log_path,
            "name": "trouble",
            "workload": workload,
            "server": server,
            "file": file,
        }
        daemon.send(message)
        while True:
            received = daemon.wait(60)
            assert received is not None
            if received[0]["t"] == "ended":
                assert not received[0]["ok"]
                return received[0]["info"], (airflow.home.folder / "logs" / log_path).read_text()

    def test_to_an_api_server_that_is_not_there(self, airflow: Any, daemon: Any) -> None:
        told, log = self.submit(airflow, daemon, server="http://127.0.0.1:1/execution/")
        assert "ConnectError" in told
        assert "http://127.0.0.1:1/execution/" in json.loads(log.splitlines()[-1])["server"]
        assert "Connection refused" in log

    def test_with_a_token_that_has_run_out(self, airflow: Any, daemon: Any) -> None:
        told, log = self.submit(airflow, daemon, valid_for_s=-60)
        assert "Invalid auth token" in told
        assert "Invalid auth token" in log

    def test_a_second_time(self, airflow: Any, daemon: Any) -> None:
        told, log = self.submit(airflow, daemon)
        assert "invalid_state" in log, told


class TestFilesThatCannotBeImported:
    """Last: one of them takes its time."""

    @pytest.mark.parametrize("name", AT_IMPORTS)
    def test_say_why(self, airflow: Any, triggered: dict[str, Any], name: str) -> None:
        run = airflow.wait(triggered[name])
        assert run.state == "failed"
        assert AT_IMPORTS[name][1] in airflow.log(run, "says")
