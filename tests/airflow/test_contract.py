"""What HeadraceExecutor promises and LocalExecutor does not keep, each on a real Airflow, with real SIGKILLs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.testing import wait_until
from headrace_airflow import client, places
from headrace_airflow.bench.measures import measure
from headrace_airflow.bench.processes import has_ended
from headrace_airflow.bench.records import Cell
from headrace_airflow.bench.workloads import BY_NAME, Workload
from headrace_airflow.bench.workloads import DAGS as BENCH_DAGS
from headrace_airflow.wire import Channel

pytestmark = pytest.mark.shares_runtime


@pytest.fixture
def airflow(airflow_on_postgres: Any) -> Any:
    return airflow_on_postgres


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where tasks of a run say what they do; the gate opens when the test ends, so that none waits for ever."""
    yield tmp_path
    (tmp_path / "gate").touch()


def said(folder: Path, count: int = 1) -> list[str]:
    """Waits until so many lines have been said, and returns all."""

    def lines() -> list[str]:
        path = folder / "said"
        return path.read_text().splitlines() if path.exists() else []

    wait_until(lambda: len(lines()) >= count, timeout_s=90)
    return lines()


def pid_in(line: str) -> int:
    found = re.search(r"pid (\d+)", line)
    assert found
    return int(found[1])


def pulse_of(airflow: Any) -> psutil.Process:
    """The process that sends the heartbeats of quiet tasks, once it is up."""
    wait_until(lambda: processes_of(airflow, "headrace pulse"), timeout_s=60)
    (pulse,) = processes_of(airflow, "headrace pulse")
    return pulse


def processes_of(airflow: Any, title: str) -> list[psutil.Process]:
    """The processes whose title or command has these words."""
    found = []
    for pid in airflow.family.pids():
        with contextlib.suppress(psutil.NoSuchProcess):
            if title in " ".join(psutil.Process(pid).cmdline()):
                found.append(psutil.Process(pid))
    return found


def daemon_of(airflow: Any) -> psutil.Process:
    (daemon,) = processes_of(airflow, "headrace_airflow.daemon")
    return daemon


def origin_of(airflow: Any) -> psutil.Process:
    (origin,) = processes_of(airflow, "headrace origin")
    return origin


def supervisor_of(airflow: Any, run: Any) -> psutil.Process:
    """The supervisor of a run's task; one that has left because the task is quiet is made to look after it again."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        found[:] = processes_of(airflow, f"headrace supervisor: {run.dag_id}.")
        if not found:
            look_at(airflow, run)
        return bool(found)

    wait_until(is_there, timeout_s=30)
    return found[0]


def look_at(airflow: Any, run: Any) -> None:
    """Tells the daemon that the API server wants something of a run's tasks."""
    query = "SELECT external_executor_id FROM task_instance WHERE run_id = :run AND state = 'running'"
    with connected(airflow) as channel:
        channel.send({"t": "look", "ids": [row[0] for row in airflow.sql(query, run=run.run_id)]})
        client.ask(channel, {"t": "status"})


@contextlib.contextmanager
def connected(airflow: Any) -> Iterator[Channel]:
    """A connection to an Airflow's daemon."""
    base = str(airflow.home.temporary / f"headrace-{os.getuid()}")
    place = places.folder(str(airflow.home.folder), airflow.database_url, None, base)
    channel = client.connect(place, "test")
    assert channel is not None
    try:
        yield channel
    finally:
        channel.close()


def kill_scheduler(airflow: Any, postgres: Any) -> None:
    """SIGKILL for the scheduler alone. Its connections have to end with it: what they have locked would stay locked."""
    scheduler = psutil.Process(airflow.components["scheduler"].pid)
    ports: set[int] = set()

    def is_connected() -> bool:
        connections = scheduler.net_connections("tcp")
        ports.update(c.laddr.port for c in connections if c.raddr and c.raddr.port == postgres.port)
        return bool(ports)

    wait_until(is_connected, "the scheduler's connection to the database")
    airflow.kill("scheduler")
    query = "SELECT client_port FROM pg_stat_activity WHERE client_port > 0"
    wait_until(lambda: not ports & {row[0] for row in airflow.sql(query)}, "the end of the scheduler's connections")


class TestSchedulerKilled:
    def test_the_same_try_goes_on_and_nothing_runs_twice(self, airflow: Any, postgres: Any, folder: Path) -> None:
        run = airflow.trigger("gated", {"folder": str(folder), "count": 3})
        begun = said(folder, 3)
        kill_scheduler(airflow, postgres)
        airflow.start("scheduler")
        wait_until(lambda: owners(airflow, run) == {newest_scheduler(airflow)}, timeout_s=60)
        assert {task.state for task in airflow.tasks(run) if task.task_id == "work"} == {"running"}
        (folder / "gate").touch()
        assert airflow.wait(run).state == "success"
        assert said(folder) == begun
        assert {(task.state, task.try_number) for task in airflow.tasks(run)} == {("success", 1)}
        assert airflow.xcom(run, "total") == 3

    def test_what_ended_while_there_was_none_counts(self, airflow: Any, postgres: Any, folder: Path) -> None:
        run = airflow.trigger("gated", {"folder": str(folder), "count": 2})
        begun = said(folder, 2)
        kill_scheduler(airflow, postgres)
        (folder / "gate").touch()
        for line in begun:
            wait_until(lambda line=line: has_ended(pid_in(line)), timeout_s=60)
        airflow.start("scheduler")
        assert airflow.wait(run).state == "success"
        assert said(folder) == begun
        assert {(task.state, task.try_number) for task in airflow.tasks(run)} == {("success", 1)}


def newest_scheduler(airflow: Any) -> int:
    """The id of its job."""
    return int(airflow.sql("SELECT max(id) FROM job WHERE job_type = 'SchedulerJob'")[0][0])


def owners(airflow: Any, run: Any) -> set[int]:
    """The schedulers that the tasks which run belong to."""
    query = "SELECT queued_by_job_id FROM task_instance WHERE run_id = :run AND state = 'running'"
    return {row[0] for row in airflow.sql(query, run=run.run_id)}


class TestLoads:
    """The benchmark's, small."""

    @pytest.fixture(params=["restarts", "many"])
    def workload(self, request: pytest.FixtureRequest, airflow: Any) -> Workload:
        for file in BENCH_DAGS.glob("headrace_bench_loads.py"):
            airflow.write_dag(file.name, file.read_text())
        return replace(BY_NAME[request.param], times={"restarts": 2, "many": 5}[request.param])

    def test_every_task_runs_once(self, airflow: Any, postgres: Any, workload: Workload) -> None:
        cell = Cell()
        measure(airflow, postgres, workload, cell)
        if workload.kind == "many":
            assert [ended for ended, _ in cell.memory] == [0, 1, 2, 5]
            assert all(size > 1e6 for _, sizes in cell.memory for size in sizes.values())


class TestProcessKilled:
    def test_the_task(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("gated_once", {"folder": str(folder)})
        pid = pid_in(said(folder)[0])
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        airflow.wait_for_task(run, "work", {"failed"})
        assert time.monotonic() - killed < 5
        assert airflow.wait(run).state == "failed"
        log = airflow.log(run, "work")
        assert "killed by SIGKILL" in log
        assert re.search(r"peak_memory_mib=\d\d", log)

    def test_the_supervisor(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("gated_with_retry", {"folder": str(folder)})
        pid = pid_in(said(folder)[0])
        supervisor_of(airflow, run).kill()
        killed = time.monotonic()
        wait_until(lambda: has_ended(pid), timeout_s=5)
        lines = said(folder, 2)
        assert time.monotonic() - killed < 6
        assert [line.split(" pid")[0] for line in lines] == ["try 1", "try 2"]
        assert airflow.wait(run).state == "success"
        assert "supervisor ended by itself, and the task with it: killed by SIGKILL" in airflow.log(run, "work")

    def test_the_zygote(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("gated_with_retry", {"folder": str(folder)})
        pid = pid_in(said(folder)[0])
        zygote = psutil.Process(pid).parent()
        assert zygote is not None
        zygote.kill()
        wait_until(lambda: has_ended(pid), timeout_s=5)
        said(folder, 2)
        assert airflow.wait(run).state == "success"
        log = airflow.log(run, "work")
        assert "its zygote, has ended, and the task with it" in log
        assert not re.search(r"memory|was killed", log), log

    def test_the_origin(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("gated_with_retry", {"folder": str(folder)})
        pid = pid_in(said(folder)[0])
        origin_of(airflow).kill()
        wait_until(lambda: has_ended(pid), timeout_s=5)
        said(folder, 2)
        assert airflow.wait(run).state == "success"

    def test_the_daemon(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("gated_with_retry", {"folder": str(folder)})
        pid = pid_in(said(folder)[0])
        daemon = daemon_of(airflow)
        below = daemon.children(recursive=True)
        daemon.kill()
        for process in below:
            wait_until(lambda process=process: has_ended(process.pid), timeout_s=10)
        assert has_ended(pid)
        said(folder, 2)
        assert airflow.wait(run).state == "success"
        assert daemon_of(airflow) != daemon
        assert "The Headrace daemon ended, and the task with it" in airflow.log(run, "work")

    def test_by_itself(self, airflow: Any) -> None:
        run = airflow.run("kills_itself")
        assert run.state == "failed"
        assert airflow.task(run, "die").duration_s < 3


def mark_failed(airflow: Any, run: Any, task_id: str) -> None:
    airflow.api.request("PATCH", f"{run.path}/taskInstances/{task_id}", json={"new_state": "failed"})


class TestQuiet:
    """A task that has nothing to say does not keep a supervisor."""

    @pytest.fixture
    def quiet(self, airflow: Any, folder: Path) -> tuple[Any, int]:
        """A run with one task, which is parked, and its pid."""
        run = airflow.trigger("gated_once", {"folder": str(folder)})
        pid = pid_in(said(folder)[0])
        wait_until(lambda: not processes_of(airflow, f"headrace supervisor: {run.dag_id}."), timeout_s=60)
        return run, pid

    def test_it_goes_on(self, airflow: Any, folder: Path, quiet: tuple[Any, int]) -> None:
        run, pid = quiet
        pulse = pulse_of(airflow)
        assert not has_ended(pid)
        before = airflow.sql("SELECT last_heartbeat_at FROM task_instance WHERE run_id = :run", run=run.run_id)
        wait_until(
            lambda: (
                before != airflow.sql("SELECT last_heartbeat_at FROM task_instance WHERE run_id = :run", run=run.run_id)
            ),
            timeout_s=60,
        )
        assert not processes_of(airflow, f"headrace supervisor: {run.dag_id}.")
        (folder / "gate").touch()
        assert airflow.wait(run).state == "success"
        assert "the work has begun" in airflow.log(run, "work")
        wait_until(lambda: has_ended(pulse.pid), timeout_s=60)

    def test_it_shares_equal_pages_but_who_holds_its_token_does_not(self, airflow: Any, quiet: tuple[Any, int]) -> None:
        def said_of(pid: int) -> str:
            path = Path(f"/proc/{pid}/ksm_stat")
            return path.read_text() if path.exists() else ""

        if "ksm_merge_any" not in said_of(os.getpid()):
            pytest.skip("this kernel does not say whose pages it may merge (before Linux 6.10)")
        assert "ksm_merge_any: yes" in said_of(quiet[1])
        assert "ksm_merge_any: no" in said_of(pulse_of(airflow).pid)

    def test_it_is_marked_failed(self, airflow: Any, quiet: tuple[Any, int]) -> None:
        run, pid = quiet
        mark_failed(airflow, run, "work")
        wait_until(lambda: has_ended(pid), timeout_s=20)
        assert airflow.wait(run).state == "failed"

    def test_it_is_killed(self, airflow: Any, quiet: tuple[Any, int]) -> None:
        run, pid = quiet
        os.kill(pid, signal.SIGKILL)
        assert airflow.wait(run).state == "failed"
        assert "killed by SIGKILL" in airflow.log(run, "work")

    def test_its_heartbeat_is_killed(self, airflow: Any, folder: Path, quiet: tuple[Any, int]) -> None:
        run, pid = quiet
        pulse = pulse_of(airflow)
        pulse.kill()
        wait_until(lambda: processes_of(airflow, f"headrace supervisor: {run.dag_id}."), timeout_s=30)
        assert not has_ended(pid)
        (folder / "gate").touch()
        assert airflow.wait(run).state == "success"


class TestMarkedFailed:
    def test_ends_the_process_soon(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("gated_once", {"folder": str(folder)})
        pid = pid_in(said(folder)[0])
        mark_failed(airflow, run, "work")
        marked = time.monotonic()
        wait_until(lambda: has_ended(pid), timeout_s=10)
        assert time.monotonic() - marked < 4  # about 1 s, but for a busy machine
        assert airflow.wait(run).state == "failed"

    def test_on_kill_is_called(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("tidies", {"folder": str(folder)})
        line = said(folder)[0]
        mark_failed(airflow, run, "tidy")
        wait_until(lambda: has_ended(pid_in(line)), timeout_s=15)
        assert said(folder, 2)[1] == "tidied"
        assert has_ended(int(line.split()[1]))

    def test_revoking_it_ends_the_process_too(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("gated_with_retry", {"folder": str(folder)})
        pid = pid_in(said(folder)[0])
        (submission,) = airflow.sql("SELECT external_executor_id FROM task_instance WHERE run_id = :r", r=run.run_id)[0]
        with connected(airflow) as channel:
            channel.send({"t": "revoke", "id": submission})
            wait_until(lambda: has_ended(pid), timeout_s=10)
        assert airflow.wait(run).state == "success"  # to its own scheduler it was killed: it is tried again

    def test_takes_what_bash_has_started(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("bash_sleeps", {"folder": str(folder)})
        bash = psutil.Process(pid_in(said(folder)[0]))
        wait_until(bash.children, timeout_s=10)
        (sleep,) = bash.children()
        mark_failed(airflow, run, "sleep")
        wait_until(lambda: has_ended(bash.pid) and has_ended(sleep.pid), timeout_s=15)


class TestNeeds:
    def test_are_kept_to(self, airflow: Any, folder: Path) -> None:
        run = airflow.run("declares", {"folder": str(folder)})
        lines = said(folder, 6)
        assert [line.split()[0] for line in lines] == ["begin", "end"] * 3  # 2 of 3 cpus each: one at a time
        assert airflow.task(run, "misspelt").state == "failed"
        assert run.state == "failed"


def test_a_running_tasks_log_is_there(airflow: Any, folder: Path) -> None:
    run = airflow.trigger("gated_once", {"folder": str(folder)})
    said(folder)
    wait_until(lambda: "the work has begun" in airflow.log(run, "work"), timeout_s=10)


def command(airflow: Any, *words: str) -> str:
    """Runs ``airflow headrace``."""
    line = [sys.executable, "-m", "airflow", "headrace", *words]
    done = subprocess.run(
        line, env=airflow.environment, cwd=airflow.home.folder, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestCommands:
    def test_status(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("gated_once", {"folder": str(folder)})
        pid = pid_in(said(folder)[0])
        status = json.loads(command(airflow, "status", "--json"))
        (task,) = status["tasks"]
        assert (task["pid"], task["state"]) == (pid, "running")
        assert task["name"] == f"gated_once.work {run.run_id} #1"
        assert status["schedulers"] == 1
        assert ["dags-folder", "", "gated.py"] in [zygote["file"] for zygote in status["zygotes"]]
        assert f"pid {pid}" in command(airflow, "status")

    def test_drain_and_resume(self, airflow: Any, folder: Path) -> None:
        command(airflow, "drain")
        try:
            run = airflow.trigger("gated_once", {"folder": str(folder)})
            airflow.wait_for_task(run, "work", {"queued"})
            wait_until(lambda: json.loads(command(airflow, "status", "--json"))["tasks"], timeout_s=60)
            (task,) = json.loads(command(airflow, "status", "--json"))["tasks"]
            assert task["state"] == "waiting"
        finally:
            command(airflow, "resume")
        (folder / "gate").touch()
        assert airflow.wait(run).state == "success"

    def test_evict(self, airflow: Any) -> None:
        airflow.run("kills_itself")
        before = {process.pid for process in processes_of(airflow, "headrace zygote: gated.py")}
        assert len(before) == 1
        assert "let go" in command(airflow, "evict")
        wait_until(lambda: not before & set(airflow.family.pids()), timeout_s=30)


class TestAway:
    def test_the_api_server_for_20_s(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("gated", {"folder": str(folder), "count": 2})
        begun = said(folder, 2)
        airflow.kill("api-server")
        (folder / "gate").touch()
        time.sleep(20)  # what is tested is that tasks which end meanwhile are not lost
        airflow.start("api-server")
        assert airflow.wait(run).state == "success", airflow.why(run)
        assert said(folder) == begun

    def test_the_database_for_a_moment(self, airflow: Any, postgres: Any, folder: Path) -> None:
        run = airflow.trigger("gated", {"folder": str(folder), "count": 2})
        begun = said(folder, 2)
        postgres.restart()
        (folder / "gate").touch()
        for line in begun:
            wait_until(lambda line=line: has_ended(pid_in(line)), timeout_s=60)
        for name in list(airflow.components):
            # Some of Airflow's own components end when their database does; whoever runs them starts them again.
            if airflow.components[name].wait(3.0):
                airflow.start(name)
        assert airflow.wait(run).state == "success", airflow.why(run)
        assert said(folder) == begun

    def test_a_scheduler_that_is_told_to_end_waits_for_its_tasks(self, airflow: Any, folder: Path) -> None:
        run = airflow.trigger("gated_once", {"folder": str(folder)})
        said(folder)
        scheduler = airflow.components["scheduler"]
        scheduler.send(signal.SIGTERM)
        log = airflow.home.logs / "scheduler.txt"
        wait_until(lambda: "Waiting for 1 running workloads" in log.read_text(), timeout_s=60)
        assert scheduler.is_running
        (folder / "gate").touch()
        wait_until(lambda: not scheduler.is_running, timeout_s=60)
        assert airflow.task(run, "work").state == "success"
        airflow.components.pop("scheduler")
        airflow.start("scheduler")
        assert airflow.wait(run).state == "success"


def test_a_scheduler_may_leave_its_tasks_to_the_next_and_nothing_stays_for_ever(
    make_airflow: Callable[..., Any], folder: Path
) -> None:
    airflow = make_airflow(
        settings={
            "AIRFLOW__HEADRACE__AT_END": "detach",
            "AIRFLOW__HEADRACE__LINGER": "2",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "1",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "10",
            "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "1",
        }
    )
    run = airflow.trigger("gated_once", {"folder": str(folder)})
    begun = said(folder)
    airflow.stop("scheduler")
    assert not has_ended(pid_in(begun[0]))
    airflow.start("scheduler")
    (folder / "gate").touch()
    assert airflow.wait(run).state == "success"
    assert said(folder) == begun
    gives_up_what_cannot_start(airflow, folder)
    daemon = daemon_of(airflow)
    below = daemon.children(recursive=True)
    airflow.stop("scheduler")
    wait_until(lambda: all(has_ended(process.pid) for process in [daemon, *below]), timeout_s=60)
    assert not list(airflow.home.temporary.glob("headrace-*"))


def gives_up_what_cannot_start(airflow: Any, folder: Path) -> None:
    """A task that waits for too long is taken back by the scheduler, and starts once when it is queued again."""
    log = airflow.home.logs / "scheduler.txt"
    command(airflow, "drain")
    run = airflow.trigger("gated_once", {"folder": str(folder)})
    wait_until(lambda: "will try to requeue" in log.read_text(), timeout_s=60)
    command(airflow, "resume")
    assert airflow.wait(run).state == "success"
    assert len(said(folder)) == 2
