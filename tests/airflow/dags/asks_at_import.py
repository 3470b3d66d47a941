"""Asks for a Variable while it is parsed, which needs a task: so it is parsed anew for every one."""

from __future__ import annotations

from airflow.sdk import Variable, dag, task

ASKED = Variable.get("asked_at_import", default="nothing")


@dag(schedule=None)
def asks_at_import():
    @task
    def says():
        return ASKED

    says()


asks_at_import()
