"""A run that is late at once, and ends when somebody has been told so; one of the callbacks fails."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DeadlineAlert, DeadlineReference, SyncCallback, dag, task


def folder_of(context):
    return Path(context["dag_run"]["conf"]["folder"])


def tells(word, context):
    (folder_of(context) / "told").write_text(word)


def fails(context):
    (folder_of(context) / "failing").touch()
    raise ValueError("no use")


def late(callback):
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT, interval=timedelta(seconds=0.1), callback=callback
    )


@dag(schedule=None, deadline=[late(SyncCallback(tells, {"word": "late"})), late(SyncCallback(fails))])
def has_a_deadline():
    @task
    def waits_for_the_callbacks(dag_run=None):
        folder = Path(dag_run.conf["folder"])
        while not all((folder / name).exists() for name in ("told", "failing")):
            time.sleep(0.05)

    waits_for_the_callbacks()


has_a_deadline()
