"""A producer and a consumer that each take ten seconds, a tenth of a second for an item."""

# mypy: ignore-errors
# A DAG file as people write them: what a task returns stands for its value, which no annotation says.

from __future__ import annotations

import time

from airflow.sdk import dag, task

ITEMS, ITEM_S = 100, 0.1


@task
def produce():
    for number in range(ITEMS):
        time.sleep(ITEM_S)  # stands for work
        yield number


@task
def consume(numbers):
    total = 0
    for number in numbers:
        time.sleep(ITEM_S)  # stands for work
        total += number
    return total


@dag(schedule=None)
def headrace_stream():
    consume(produce())


headrace_stream()
