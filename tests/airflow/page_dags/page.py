"""What the page has to show: tasks that run and wait as long as a test wants, a value in the store, a gap."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
from airflow.sdk import dag, task

WHOLE_NODE = {"headrace": {"cpus": 1000, "memory": "64MiB"}}


@task(executor_config=WHOLE_NODE)
def work(file: str) -> None:
    while not os.path.exists(file):
        time.sleep(0.05)


@dag(schedule=None)
def page_held():
    """Either task leaves no room for the other."""
    work.override(task_id="one")("{{ dag_run.conf['file'] }}")
    work.override(task_id="other")("{{ dag_run.conf['file'] }}")


@dag(schedule=None)
def page_steps():
    @task
    def make() -> Any:
        return np.ones(1_000_000)

    @task
    def use(value: Any) -> int:
        return len(value)

    use(make())


page_held()
page_steps()
