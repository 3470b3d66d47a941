"""HeadraceExecutor where Airflow is not as it comes: a scheduler that sleeps for long, remote logs, ``dags test``."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from headrace_airflow.bench.airflow import AIRFLOW
from headrace_airflow.bench.client import DagRun

SLEEP_S = 5.0
"""No longer: the scheduler has something to do every 5 s, as it comes."""
GAP_S = 1.5

CHAINS = """
import os, time
from airflow.sdk import dag, task

@task
def is_warm(before):
    print("it looks at its parent")
    time.sleep(0.5)  # the scheduler's loop would have gone to sleep by then
    return "headrace zygote" in open(f"/proc/{os.getppid()}/cmdline").read()

def chain_of(count):
    found = None
    for _ in range(count):
        found = is_warm(found)

@dag(schedule=None)
def short():
    chain_of(3)

@dag(schedule=None)
def long():
    chain_of(5)

@dag(schedule=None)
def stays_paused():
    chain_of(2)

short()
long()
stays_paused()
"""

REMOTE_LOGS = """
import os
from pathlib import Path
from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG as LOGGING_CONFIG

class Remote:
    processors = ()

    def upload(self, path, ti):
        copy = Path(__file__).parent / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        with copy.open("a") as file:
            file.write(Path(os.environ["AIRFLOW_HOME"], "logs", path).read_text())

    def read(self, relative_path, ti):
        copy = Path(__file__).parent / relative_path
        return ["remote"], [copy.read_text()] if copy.exists() else None

REMOTE_TASK_LOG = Remote()
DEFAULT_REMOTE_CONN_ID = None
"""

pytestmark = pytest.mark.shares_runtime


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where logs are uploaded to."""
    folder = tmp_path_factory.mktemp("remote")
    (folder / "remote_logs.py").write_text(REMOTE_LOGS)
    return folder


@pytest.fixture(scope="module")
def airflow(make_shared_airflow: Any, remote: Path) -> Any:
    settings = {
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": str(SLEEP_S),
        "AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS": "remote_logs.LOGGING_CONFIG",
        "PYTHONPATH": str(remote),
    }
    components = ["api-server", "dag-processor", "scheduler"]
    airflow = make_shared_airflow(settings=settings, components=components, dags=None)
    airflow.write_dag("chains.py", CHAINS)
    return airflow


def longest_gap_s(airflow: Any, dag_id: str) -> float:
    """Between two tasks of a chain, where one follows the other."""
    run = airflow.run(dag_id)
    assert run.state == "success", airflow.why(run)
    tasks = sorted(airflow.tasks(run), key=lambda task: task.start_date)
    return max((after.start_date - task.end_date).total_seconds() for task, after in pairwise(tasks))


def test_a_chain_waits_for_no_sleep_of_the_scheduler(airflow: Any) -> None:
    assert longest_gap_s(airflow, "long") < GAP_S


def test_a_log_is_uploaded_once_and_read_when_there_is_no_other(airflow: Any, remote: Path) -> None:
    run = airflow.run("short")
    logs = [path for path in airflow.home.folder.glob("logs/**/*.log") if run.run_id in str(path)]
    assert len(logs) == 3
    for path in logs:
        copy = remote / path.relative_to(airflow.home.folder / "logs")
        assert copy.read_text().count("it looks at its parent") == 1
        path.unlink()
    assert "it looks at its parent" in airflow.log(run, "is_warm")


def test_a_dag_is_tested_without_a_scheduler(airflow: Any) -> None:
    airflow.wait_for_dags({"stays_paused"})
    command = [*AIRFLOW, "dags", "test", "stays_paused", "--use-executor"]
    done = subprocess.run(
        command, env=airflow.environment, cwd=airflow.home.folder, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    (found,) = airflow.api.get("/dags/stays_paused/dagRuns")["dag_runs"]
    run = DagRun.of(found)
    assert run.state == "success"
    assert [airflow.xcom(run, name) for name in ("is_warm", "is_warm__1")] == [True, True]


def test_a_scheduler_that_shall_sleep_runs_a_chain_all_the_same(airflow: Any) -> None:
    airflow.environment["AIRFLOW__HEADRACE__CLOSE_GAP"] = "False"
    airflow.kill("scheduler")
    airflow.start("scheduler")
    assert longest_gap_s(airflow, "short") > GAP_S, "or the first one shows nothing"
