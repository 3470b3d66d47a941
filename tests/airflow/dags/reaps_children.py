"""Reaps whatever child ends, from the time of its import on: nobody else learns of it then."""

from __future__ import annotations

import os
import signal

from airflow.sdk import dag, task


def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        pass


signal.signal(signal.SIGCHLD, reap)


@dag(schedule=None)
def reaps_children():
    @task
    def starts_a_child(number):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        return [number, signal.getsignal(signal.SIGCHLD) is reap]

    starts_a_child.expand(number=[0, 1, 2])


reaps_children()
