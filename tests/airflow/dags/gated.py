"""Tasks that say that they run, in a file, and go on when another file appears; retries and slow ends on request."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import BaseOperator, dag, get_current_context, task


def say(folder: str, what: str) -> None:
    with open(Path(folder) / "said", "a") as file:
        file.write(f"{what}\n")


def wait_for_gate(folder: str) -> None:
    while not (Path(folder) / "gate").exists():
        time.sleep(0.02)


@dag(schedule=None)
def gated():
    @task
    def numbers(params=None, dag_run=None):
        return list(range(dag_run.conf.get("count", 1)))

    @task
    def work(number, dag_run=None, ti=None):
        say(dag_run.conf["folder"], f"{number} try {ti.try_number} pid {os.getpid()}")
        wait_for_gate(dag_run.conf["folder"])
        return number

    @task
    def total(found):
        return sum(found)

    total(work.expand(number=numbers()))


@dag(schedule=None)
def gated_once():
    @task
    def work(dag_run=None, ti=None):
        print("the work has begun")
        say(dag_run.conf["folder"], f"try {ti.try_number} pid {os.getpid()}")
        wait_for_gate(dag_run.conf["folder"])

    work()


@dag(schedule=None)
def gated_with_retry():
    @task(retries=1, retry_delay=timedelta(seconds=0))
    def work(dag_run=None, ti=None):
        say(dag_run.conf["folder"], f"try {ti.try_number} pid {os.getpid()}")
        if ti.try_number == 1:
            wait_for_gate(dag_run.conf["folder"])

    work()


@dag(schedule=None)
def kills_itself():
    @task
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    die()


class Tidy(BaseOperator):
    """Has something to put right when it is killed."""

    def execute(self, context):
        self.folder = context["dag_run"].conf["folder"]
        self.child = subprocess.Popen(["sleep", "600"])
        say(self.folder, f"child {self.child.pid} pid {os.getpid()}")
        self.child.wait()

    def on_kill(self):
        self.child.terminate()
        say(self.folder, "tidied")


@dag(schedule=None)
def tidies():
    Tidy(task_id="tidy")


@dag(schedule=None)
def bash_sleeps():
    BashOperator(task_id="sleep", bash_command="echo pid $$ >> {{ dag_run.conf['folder'] }}/said; sleep 600 & wait")


@dag(schedule=None)
def declares():
    @task(executor_config={"headrace": {"cpus": 2, "memory": "1MiB"}})
    def wide(number, dag_run=None):
        say(dag_run.conf["folder"], f"begin {number}")
        time.sleep(0.3)
        say(dag_run.conf["folder"], f"end {number}")

    @task(executor_config={"headrace": {"cores": 2}})
    def misspelt():
        get_current_context()

    wide.expand(number=[1, 2, 3])
    misspelt()


gated()
gated_once()
gated_with_retry()
kills_itself()
tidies()
bash_sleeps()
declares()
