"""A runtime inside a task belongs to its node: workers come from the task's zygote, values go through the store."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.testing import wait_until

pytestmark = pytest.mark.shares_runtime

DAGS = Path(__file__).parent / "dask_dags"
SETTINGS = {"AIRFLOW__CORE__XCOM_BACKEND": "headrace_airflow.HeadraceXCom", "AIRFLOW__HEADRACE__XCOM_MEMORY": "3GiB"}


@pytest.fixture(scope="module")
def airflow(make_shared_airflow: Any) -> Any:
    return make_shared_airflow(dags=DAGS, settings=SETTINGS)


def test_workers_are_forks_of_the_tasks_zygote_and_count_with_the_task(airflow: Any) -> None:
    run = airflow.run("dask_workers")
    assert run.state == "success", airflow.describe(run)
    seen = airflow.xcom(run, "anywhere")
    assert seen["workers"]
    assert seen["task"] not in seen["workers"]
    assert seen["their_parents"] == [seen["zygote"]]
    assert seen["their_groups"] == [seen["task"]]
    assert airflow.log(run, "anywhere").count("a line of a worker's") == 20
    assert not any(map(psutil.pid_exists, seen["workers"])), "they end with their task"


def test_a_task_has_no_more_workers_than_it_has_cpus(airflow: Any) -> None:
    run = airflow.run("dask_workers")
    assert len(airflow.xcom(run, "on_one_cpu")["workers"]) == 1


def test_workers_end_when_their_task_is_killed(airflow: Any) -> None:
    run = airflow.trigger("dask_killed")
    notes = [airflow.home.folder / f"worker-{number}" for number in range(2)]
    airflow.wait_until(lambda: any(note.exists() and note.read_text() for note in notes), "a worker at work", run=run)
    worker = psutil.Process(int(next(note for note in notes if note.exists()).read_text()))
    psutil.Process(airflow.task(run, "dies_while_its_workers_work").pid).send_signal(signal.SIGKILL)
    wait_until(lambda: not worker.is_running(), "the worker's end")
    assert airflow.wait(run).state == "failed"


def test_a_persisted_collection_is_read_where_the_store_has_it(airflow: Any) -> None:
    run = airflow.run("dask_persisted")
    assert run.state == "success", airflow.describe(run)
    assert airflow.xcom(run, "add_up") == sum(range(4_000_000))


def test_the_program_of_the_readme_runs_with_1_gib_between_its_stages(airflow: Any) -> None:
    run = airflow.run("gigabyte")
    assert run.state == "success", airflow.describe(run)
    tasks = {task.task_id: task for task in airflow.tasks(run)}
    assert tasks["func1"].start_date < tasks["func2"].end_date
    assert tasks["func2"].start_date < tasks["func1"].end_date, "side by side"
    assert airflow.xcom(run, "func3") == 2 * 7 + (1 << 29) // 8 - 1
