"""The same graphs in a file that imports what many DAG files import."""

# mypy: ignore-errors
# A DAG file as people write them: what a task returns stands for its value, which no annotation says.

from __future__ import annotations

import pandas  # noqa: F401  the imports are what is measured
import pyarrow  # noqa: F401
from airflow.sdk import dag, task

CHAIN, FAN = 20, 50


@task
def increase(number):
    return number + 1


@task
def add(numbers):
    return sum(numbers)


@dag(schedule=None)
def headrace_chain_imports():
    value = 0
    for step in range(CHAIN):
        value = increase.override(task_id=f"step_{step}")(value)


@dag(schedule=None)
def headrace_fan_imports():
    first = increase.override(task_id="first")(0)
    add([increase.override(task_id=f"part_{part}")(first) for part in range(FAN)])


headrace_chain_imports()
headrace_fan_imports()
