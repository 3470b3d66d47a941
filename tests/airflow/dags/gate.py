"""A task that runs until a file appears, and so gives a test all the time it needs."""

from __future__ import annotations

import os
import time

from airflow.sdk import dag, task


@dag(schedule=None)
def gate():
    @task
    def wait_for(file: str):
        while not os.path.exists(file):
            time.sleep(0.05)
        return os.getpid()

    wait_for("{{ dag_run.conf['file'] }}")


gate()
