"""Many tasks that wait at the same time, until a file appears: what they occupy can be looked at meanwhile."""

# mypy: ignore-errors
# A DAG file as people write them: what a task returns stands for its value, which no annotation says.

from __future__ import annotations

import os
import time

from airflow.sdk import dag, task

SLEEPERS = 125


@task
def sleep_until(file):
    while not os.path.exists(file):
        time.sleep(0.5)  # to be there and do nothing is its work


@dag(schedule=None, max_active_tasks=SLEEPERS)
def headrace_sleepers():
    for number in range(SLEEPERS):
        sleep_until.override(task_id=f"sleeper_{number}")("{{ dag_run.conf['file'] }}")


headrace_sleepers()
