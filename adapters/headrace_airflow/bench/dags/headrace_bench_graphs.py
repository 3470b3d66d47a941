"""Graphs of trivial tasks: what remains is the time that Airflow and its executor take."""

# mypy: ignore-errors
# A DAG file as people write them: what a task returns stands for its value, which no annotation says.

from __future__ import annotations

from airflow.sdk import dag, task

CHAIN, FAN = 20, 50


@task
def increase(number):
    return number + 1


@task
def add(numbers):
    return sum(numbers)


@dag(schedule=None)
def headrace_chain():
    value = 0
    for step in range(CHAIN):
        value = increase.override(task_id=f"step_{step}")(value)


@dag(schedule=None)
def headrace_fan():
    first = increase.override(task_id="first")(0)
    add([increase.override(task_id=f"part_{part}")(first) for part in range(FAN)])


@dag(schedule=None)
def headrace_warmup():
    increase(increase(0))


headrace_chain()
headrace_fan()
headrace_warmup()
