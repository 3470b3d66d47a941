"""Tasks that say once that they run, in a file; some of them then wait until another file appears."""

# mypy: ignore-errors
# pyright: basic, reportOptionalMemberAccess=false
# A DAG file as people write them: what a task returns stands for its value, which no annotation says.

from __future__ import annotations

import os
import time

from airflow.sdk import dag, task

MANY, WAITERS = 20, 16


@task
def say(number, dag_run=None, ti=None):
    with open(dag_run.conf["file"], "a") as file:
        file.write(f"{dag_run.run_id} {number} {ti.try_number}\n")


@task
def say_and_wait(number, dag_run=None, ti=None):
    with open(dag_run.conf["file"], "a") as file:
        file.write(f"{number} {ti.try_number}\n")
    while not os.path.exists(f"{dag_run.conf['file']}.gate"):
        time.sleep(0.05)  # a file is all that the benchmark can give it a sign by


@dag(schedule=None)
def headrace_many():
    for number in range(MANY):
        say.override(task_id=f"task_{number}")(number)


@dag(schedule=None)
def headrace_waiters():
    for number in range(WAITERS):
        say_and_wait.override(task_id=f"task_{number}")(number)


headrace_many()
headrace_waiters()
