"""A task that does not want to end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from airflow.sdk import dag, task


@dag(schedule=None)
def stubborn():
    @task
    def ignores_sigterm(dag_run=None):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (Path(dag_run.conf["folder"]) / "said").write_text(f"pid {os.getpid()}\n")
        time.sleep(600)

    ignores_sigterm()


stubborn()
