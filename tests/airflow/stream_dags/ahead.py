"""Pipelines: tasks that say when they did what, so that tests see who ran beside whom.

Where a test shall decide how long a producer runs, it does so with files in a folder of its own.
"""

from __future__ import annotations

import logging
import os
import time
from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, Variable, dag, task, task_group
from airflow.sdk.exceptions import AirflowSkipException

FOLDER = Path("FOLDER")
"""Replaced by the test."""
STEPS = 5
TAGS = ["headrace-stream"]


def said(step):
    return [step, time.time(), os.getpid()]


def wait_for(name):
    while not (FOLDER / name).exists():
        time.sleep(0.02)


def note(name, what):
    with (FOLDER / name).open("a") as file:
        file.write(f"{what}\n")


@task
def reads():
    for step in range(STEPS):
        yield said(step)
        wait_for(f"aggregated {step}")


@task
def transforms(steps):
    print("transforms prints")
    logging.getLogger(__name__).info("transforms logs")
    for step, _, _ in steps:
        yield said(step)


@task
def aggregates(steps):
    found = []
    for step, _, _ in steps:
        found.append(said(step))
        note(f"aggregated {step}", "")
    return found


@dag(schedule=None, tags=TAGS)
def stream_pipeline():
    aggregates(transforms(reads()))


@dag(schedule=None, tags=TAGS)
def stream_groups():
    @task_group
    def first():
        return transforms(reads())

    @task_group
    def second(steps):
        return aggregates(steps)

    second(first())


@task
def follows(items):
    note("pids", os.getpid())
    for item in items:
        note("followed", item)
    return list(items)


@task(retries=1, retry_delay=timedelta(seconds=0.1))
def held(ti=None):
    yield f"try {ti.try_number}"
    wait_for(f"go {ti.try_number}")
    if (FOLDER / f"fail {ti.try_number}").exists():
        raise ValueError("it was told to")
    if (FOLDER / f"skip {ti.try_number}").exists():
        raise AirflowSkipException("it was told to")
    yield "end"


@dag(schedule=None, tags=TAGS)
def stream_held():
    follows(held())


@dag(schedule=None, tags=TAGS)
def stream_times_out():
    @task(execution_timeout=timedelta(seconds=8))
    def hangs():
        yield 1
        wait_for("never")

    follows(hangs())


@dag(schedule=None, tags=TAGS)
def stream_follower_times_out():
    @task
    def one():
        yield 1
        wait_for("go")

    @task(execution_timeout=timedelta(seconds=2))
    def hangs(items):
        note("pids", os.getpid())
        for _ in items:
            wait_for("never")

    hangs(one())


@task(trigger_rule="all_done")
def runs_all_the_same(items):
    return [os.getpid(), list(items)]


@task
def asks(items):
    note("pids", os.getpid())
    try:
        value = Variable.get("there_is_none", default="default")
    except Exception:  # a user's: that it has asked must come out all the same
        value = "no answer"
    return [list(items), value]


@dag(schedule=None, tags=TAGS)
def stream_asks():
    asks(held())


@task(retries=1, retry_delay=timedelta(seconds=0.1))
def fails(items):
    note("pids", os.getpid())
    return [next(iter(items)), 1 / 0]


@dag(schedule=None, tags=TAGS)
def stream_fails():
    fails(held())


@task(executor_config={"headrace": {"stream": False}})
def says_no(items):
    return [os.getpid(), list(items)]


@task
def has_another_upstream(items, other):
    return [os.getpid(), list(items), other]


@task
def looks_at_its_run(items, run_id=None):
    return [os.getpid(), list(items), run_id]


@task
def is_one_of_many(item):
    return item


class Defers(BaseOperator):
    template_fields = ("items",)

    def __init__(self, items, **kwargs):
        super().__init__(**kwargs)
        self.items = items

    def execute(self, context):
        trigger = TimeDeltaTrigger(timedelta(seconds=0.1))
        self.defer(trigger=trigger, method_name="resume", kwargs={"items": list(self.items)})

    def resume(self, context, event, items):
        return [os.getpid(), items]


@dag(schedule=None, tags=TAGS)
def stream_normal():
    @task
    def plain():
        return "plain"

    @task
    def produces():
        for item in range(3):
            time.sleep(0.2)
            yield item

    items = produces()
    runs_all_the_same(items)
    says_no(items)
    has_another_upstream(items, plain())
    looks_at_its_run(items)
    is_one_of_many.expand(item=items)
    Defers(task_id="defers", items=items)


stream_pipeline()
stream_groups()
stream_held()
stream_times_out()
stream_follower_times_out()
stream_asks()
stream_fails()
stream_normal()
