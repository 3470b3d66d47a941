"""The harness itself: what it starts, sees and breaks, with Airflow's own executor too, and that it leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.testing import wait_until
from headrace_airflow.bench import databases
from headrace_airflow.bench.home import AirflowHome
from headrace_airflow.bench.processes import Family, ProcessDied

FORKS_AWAY = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.environ.clear()
        open(sys.argv[1], "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
os.wait()
time.sleep(600)
"""

OWNER = """
import os, sys, time
from pathlib import Path
from headrace_airflow.bench import databases
from headrace_airflow.bench.home import AirflowHome
from headrace_airflow.bench.processes import Family
folder = Path(sys.argv[1])
family = Family()
family.remove_at_end(folder / "removed")
family.start([sys.executable, "-c", sys.argv[2], str(folder / "pid")], env={}, log=folder / "log")
print("started", flush=True)
time.sleep(600)
"""


def number_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text(), timeout_s=30)
    return int(path.read_text())


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


class TestFamily:
    def test_takes_along_whatever_was_started(self, tmp_path: Path) -> None:
        family = Family()
        started = family.start([sys.executable, "-c", FORKS_AWAY, str(tmp_path / "pid")], env={}, log=tmp_path / "log")
        daemon = number_in(tmp_path / "pid")
        started.kill()
        wait_until(lambda: daemon in family.pids() and started.pid not in family.pids(), timeout_s=30)
        family.close()
        assert is_gone(daemon)

    def test_ends_when_its_owner_is_killed(self, tmp_path: Path) -> None:
        (tmp_path / "removed").mkdir()
        command = [sys.executable, "-c", OWNER, str(tmp_path), FORKS_AWAY]
        owner = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert owner.stdout is not None
        with owner, owner.stdout:
            assert owner.stdout.readline() == b"started\n"
            daemon = number_in(tmp_path / "pid")
            owner.kill()
        wait_until(lambda: is_gone(daemon) and not (tmp_path / "removed").exists(), timeout_s=30)

    def test_counts_the_time_of_those_that_have_ended(self, tmp_path: Path) -> None:
        busy = "import time\nwhile time.process_time() < 0.3: pass"
        family = Family()
        try:
            for _ in range(2):
                process = family.start([sys.executable, "-c", busy], env={}, log=tmp_path / "log")
                assert process.wait(60)
                assert process.exit_code == 0
            assert family.cpu_s() >= 0.55  # the kernel counts in ticks
        finally:
            family.close()

    def test_says_how_a_process_ended(self, tmp_path: Path) -> None:
        family = Family()
        try:
            process = family.start([sys.executable, "-c", "exit('no luck')"], env={}, log=tmp_path / "log")
            assert process.wait(60)
            with pytest.raises(ProcessDied, match=r"it ended with 1:\nno luck"):
                process.check("it")
            process = family.start(["sleep", "600"], env={"PATH": os.defpath}, log=tmp_path / "log")
            process.check("it")
            assert process.stop(signal.SIGINT)
            assert process.exit_code == -signal.SIGINT
            with pytest.raises(OSError, match="nothing-of-that-name"):
                family.start(["/nothing-of-that-name"], env={}, log=tmp_path / "log")
        finally:
            family.close()


def test_postgres_restarts_and_hands_out_copies(postgres: Any, lasting: Any) -> None:
    import psycopg2

    def tables(url: str) -> list[tuple[str]]:
        connection = psycopg2.connect(url.replace("+psycopg2", ""))
        with connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            rows: list[tuple[str]] = cursor.fetchall()
        connection.close()
        return rows

    def migrate(url: str) -> None:
        """Makes Airflow's tables, if this is the first to be made in this session."""
        from headrace_airflow.bench.airflow import AIRFLOW
        from headrace_airflow.bench.databases import migrate_with

        migrate_with(AIRFLOW, dict(os.environ))(url)

    first, second = postgres.fresh(migrate), postgres.fresh(migrate)
    before = postgres.pid
    with lasting():  # the descriptors of the new server may have other numbers
        postgres.restart()
    assert postgres.pid != before
    assert ("dag_run",) in tables(first)
    assert sorted(tables(first)) == sorted(tables(second))
    postgres.discard(first)
    with pytest.raises(psycopg2.OperationalError):
        tables(first)
    postgres.discard(second)


@pytest.mark.skipif(os.geteuid() != 0, reason="who is not root runs the server as himself, where it is")
def test_postgres_runs_where_its_user_could_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "_is_open", lambda program: False)
    with databases.Postgres(durable=False) as server:
        url = server.fresh(lambda url: None)
        assert url.startswith("postgresql+psycopg2://postgres:")
        server.discard(url)


@pytest.mark.shares_runtime
class TestHarness:
    def test_runs_a_dag(self, airflow: Any) -> None:
        run = airflow.run("arithmetic")
        assert run.state == "success"
        assert run.makespan_s > 0
        found = [(task.name, task.state, task.try_number, task.max_tries) for task in airflow.tasks(run)]
        assert found == [("double", "success", 1, 0), ("three", "success", 1, 0)]
        assert airflow.task(run, "double").start_date >= airflow.task(run, "three").end_date
        assert (airflow.xcom(run, "three"), airflow.xcom(run, "double")) == (3, 6)
        assert "three is made" in airflow.log(run, "three")

    def test_sees_a_task_that_runs(self, airflow: Any, tmp_path: Path) -> None:
        run = airflow.trigger("gate", {"file": str(tmp_path / "open")})
        task = airflow.wait_for_task(run, "wait_for", {"running"})
        assert task.pid in airflow.family.pids()
        with pytest.raises(TimeoutError, match=r"(?s)gate in .*wait_for: running, try 1.*scheduler \(running\)"):
            airflow.wait(run, timeout_s=0)
        (tmp_path / "open").touch()
        assert airflow.wait(run).state == "success"
        assert airflow.xcom(run, "wait_for") == task.pid

    def test_says_which_file_cannot_be_imported(self, airflow: Any) -> None:
        path = airflow.write_dag("broken.py", "# airflow dag\nraise LookupError('no such luck')\n")
        with pytest.raises(ImportError, match=r"(?s)broken\.py.*LookupError: no such luck"):
            airflow.wait_for_dags({"broken"}, timeout_s=60)
        path.unlink()
        airflow.wait_until(lambda: not airflow.import_errors(), "the file forgotten", 60)


def test_leaves_nothing_behind(make_airflow: Any, tmp_path: Path) -> None:
    """Nor does it mind an API server that goes away."""
    stock = make_airflow(executor="LocalExecutor", components=["api-server", "dag-processor", "scheduler"])
    assert stock.run("arithmetic").state == "success"
    run = stock.trigger("gate", {"file": str(tmp_path / "never")})
    stock.wait_for_task(run, "wait_for", {"running"})
    pids, folder, port = stock.family.pids(), stock.home.folder, stock.home.api_port
    assert len(pids) > 3
    stock.kill("api-server")
    with pytest.raises(TimeoutError, match=r"the API server: .* refused"):
        stock.wait(run, timeout_s=0.5)
    stock.close()
    assert [pid for pid in pids if not is_gone(pid)] == []
    assert not folder.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_says_what_a_component_printed_before_it_died(make_airflow: Any) -> None:
    with pytest.raises(ProcessDied, match=r"(?s)scheduler ended with 1:.*no_such_module"):
        make_airflow(executor="no_such_module.Executor", components=["scheduler"])


def test_its_environment_has_nothing_of_a_surrounding_airflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "1")
    monkeypatch.setenv("HEADRACE_LANE", "inline")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    home = AirflowHome(first, {"AIRFLOW__API__WORKERS": "3"})
    environment = home.environment("sqlite:///x.db")
    assert not {"AIRFLOW__CORE__PARALLELISM", "HEADRACE_LANE"} & environment.keys()
    assert environment["AIRFLOW__API__WORKERS"] == "3"  # what is asked for goes before what is chosen
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "sqlite:///x.db"
    assert all(secret not in repr(home) for secret in home._secrets.values())
    assert AirflowHome(second).environment()["AIRFLOW__API__SECRET_KEY"] not in environment.values()
