"""Leaves a thread running when it is imported: nothing may be forked from there."""

from __future__ import annotations

import threading
import time

from airflow.sdk import dag, task


def tick():
    while True:
        time.sleep(1)


threading.Thread(target=tick, daemon=True).start()


@dag(schedule=None)
def leaks_threads():
    @task
    def counts():
        return threading.active_count()

    counts()


leaks_threads()
