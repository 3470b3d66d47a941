"""Every DAG in examples/ does what it says, on Headrace; that stock does the same is what the demonstration shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
NUMBERS = range(300_000)
SQUARES, SEVENS = sum(n * n for n in NUMBERS), len(range(0, len(NUMBERS), 7))


@pytest.fixture(scope="module")
def examples(airflow: Any) -> Any:
    for file in EXAMPLES.glob("airflow_*.py"):
        airflow.write_dag(file.name, file.read_text())
    airflow.wait_for_dags({"program", "pipeline", "flights_in_files", "flights_in_memory"})
    return airflow


def test_every_example_is_run() -> None:
    names = {"airflow_program.py", "airflow_pipeline.py", "airflow_flights.py"}
    assert {path.name for path in EXAMPLES.glob("airflow_*.py")} == names


@pytest.mark.shares_runtime
def test_the_program(examples: Any) -> None:
    run = examples.run("program")
    assert {task.name: task.state for task in examples.tasks(run)} == dict.fromkeys(
        ("numbers", "func1", "func2", "func3"), "success"
    )
    assert (examples.xcom(run, "func1"), examples.xcom(run, "func2")) == (SQUARES, SEVENS)
    assert examples.xcom(run, "func3") == f"{SQUARES} / {SEVENS} = {SQUARES / SEVENS:.1f}"


@pytest.mark.shares_runtime
def test_the_pipeline(examples: Any) -> None:
    run = examples.run("pipeline")
    assert examples.xcom(run, "aggregate") == sum(range(0, 25_000, 7))


@pytest.mark.shares_runtime
def test_the_flights_come_to_the_same_through_files_and_through_memory(examples: Any) -> None:
    runs = [examples.trigger(dag_id) for dag_id in ("flights_in_files", "flights_in_memory")]
    in_files, in_memory = [examples.wait(run, timeout_s=250) for run in runs]
    assert (in_files.state, in_memory.state) == ("success", "success")
    for task_id in ("delays", "report"):
        assert examples.xcom(in_memory, task_id) == examples.xcom(in_files, task_id)
    delays = examples.xcom(in_memory, "delays")
    assert sum(count for count, _mean, _late in delays.values()) == 327_346
    assert delays["HA"][:2] == [342, -6.915205]
    assert len(examples.xcom(in_memory, "report")) == 8
