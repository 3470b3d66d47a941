"""Prints every XCom of an Airflow's database, as tasks get them. Run in the environment of that Airflow, by itself."""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, Final

SKIPPED: Final = "skipmixin_key"


def main() -> None:
    """The last line of the output is JSON: ``{"dag run": {"task[index] key": value}}``."""
    from airflow.models.xcom import XComModel
    from airflow.sdk.execution_time.xcom import XCom
    from airflow.utils.session import create_session
    from sqlalchemy import select

    found: dict[str, dict[str, str]] = defaultdict(dict)
    with create_session() as session:
        for row in session.scalars(select(XComModel)):
            task = row.task_id if row.map_index < 0 else f"{row.task_id}[{row.map_index}]"
            value = XCom.deserialize_value(SimpleNamespace(value=row.value))
            found[f"{row.dag_id} {row.run_id}"][f"{task} {row.key}"] = shown(row.key, value)
    print(f"\n{json.dumps(found)}")


def shown(key: str, value: Any) -> str:
    """A value as text.

    Of the tasks that were skipped, or not, Airflow makes a set, and of that a list: in the same order as long as one
    scheduler lives, however often it runs the DAG.
    """
    if key == SKIPPED:
        value = {name: sorted(task_ids) for name, task_ids in value.items()}
    return f"{type(value).__name__} {value!r}"


if __name__ == "__main__":
    main()
