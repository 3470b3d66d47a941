"""Pipelines whose author has said nothing: a consumer runs ahead as long as nobody can tell."""

from __future__ import annotations

import builtins
import functools
import os
import time
from pathlib import Path

from airflow.sdk import Variable, dag, get_current_context, task

FOLDER = Path("FOLDER")
"""Replaced by the test."""
AT_ONCE = {"headrace": {"cpus": 0}}
EARLY = open(os.devnull, "a")  # noqa: SIM115  (as long as the process)


@task
def holds():
    yield from range(3)
    while not (FOLDER / "go").exists():
        time.sleep(0.02)
    (FOLDER / "made").touch()
    yield 3


@task(executor_config=AT_ONCE)
def squares(items):
    for item in items:
        yield item * item


@task(executor_config=AT_ONCE)
def totals(items):
    print("totals prints")
    return sum(items)


def noted(function):
    @functools.wraps(function)
    def around(items):
        value = function(items)
        with (FOLDER / "notes").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return value

    return around


@task(executor_config=AT_ONCE)
@noted
def writes(items):
    return list(items)


@task(executor_config=AT_ONCE)
def looks(items):
    return [(FOLDER / "made").exists(), *items]


@task(executor_config=AT_ONCE)
def looks_at_variables(items):
    return [os.getenv("AIRFLOW_CTX_TASK_ID", "unknown"), *items]


@task(executor_config=AT_ONCE)
def asks(items):
    try:
        known = Variable.get("there_is_none", default="default")
    except Exception:  # a user's: that it has asked must come out all the same
        known = "unknown"
    return [known, *items]


@task(executor_config=AT_ONCE)
def looks_around(items):
    return [get_current_context()["ti"].task_id, *items]


@task(executor_config=AT_ONCE)
def imports(items):
    import wave

    return [wave.__name__, *items]


@task(executor_config=AT_ONCE)
def uses_what_is_open(items):
    EARLY.write("out")
    EARLY.flush()
    return [os.getpid(), *items]


@task(executor_config=AT_ONCE)
def replaces(items):
    builtins.len, kept = (lambda items: (FOLDER / "made").exists()), len
    try:
        found = len("of what")
    finally:
        builtins.len = kept
    return [found, *items]


@task(executor_config=AT_ONCE)
def makes_code(items):
    return [eval("(FOLDER / 'made').exists()"), *items]


@task(executor_config={"headrace": {"cpus": 0, "stream": False}})
def says_no(items):
    return list(items)


def in_memory(context):
    pass


@task(executor_config=AT_ONCE, on_success_callback=in_memory)
def is_watched(items):
    return list(items)


@dag(schedule=None)
def stream_contained():
    items = holds()
    totals(squares(items))
    tasks = (writes, looks, looks_at_variables, asks, looks_around, imports, uses_what_is_open, replaces, makes_code)
    for consumer in (*tasks, says_no, is_watched):
        consumer(items)


@dag(schedule=None, tags=["headrace-no-stream"])
def stream_forbidden():
    totals(squares(holds()))


stream_contained()
stream_forbidden()
