"""Generator tasks on a real Airflow: their values under both executors, and consumers that begin before they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.shares_runtime

DAGS = Path(__file__).parent / "stream_dags"

VALUES = {
    "summary": [1000, 998_001, [0, 1, 4], sum(n * n for n in range(1000)), True],
    "all_of": [1, 2, 3],
    "first_of_each": ["a", "b", "d"],
    "count_nothing": 0,
    "metadata_alone_is_no_value": True,
    "returns": "kept",
    "is_not_pushed": True,
}


@pytest.fixture(scope="module")
def streams(airflow: Any) -> Any:
    for file in DAGS.glob("*.py"):
        airflow.write_dag(file.name, file.read_text())
    airflow.wait_for_dags({"stream_values", "stream_values_local"})
    return airflow


@pytest.mark.parametrize("dag_id", ["stream_values", "stream_values_local"])
def test_consumers_get_what_was_yielded(streams: Any, dag_id: str) -> None:
    run = streams.run(dag_id)
    assert run.state == "success", streams.why(run)
    assert {task_id: streams.xcom(run, task_id) for task_id in VALUES} == VALUES
