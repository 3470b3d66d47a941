"""Tasks that do what no task should: each fails, or succeeds, by itself, and says why in its log."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from airflow.sdk import dag, task

MANY = 200 << 20


class Odd(BaseException):
    """No Exception."""


@dag(schedule=None)
def misbehaves():
    @task
    def exits():
        os._exit(3)

    @task
    def crashes():
        ctypes.string_at(0)

    @task
    def raises_oddly():
        raise Odd("no exception at all")

    @task
    def forks_and_returns_twice():
        os.fork()
        return 1

    @task
    def closes_all_descriptors():
        os.closerange(0, 4096)

    @task
    def floods():
        piece = "x" * (1 << 20)
        for _ in range(MANY >> 20):
            sys.stdout.write(piece)
        return "done"

    @task
    def finds_no_memory():
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
        bytearray(1 << 30)

    @task
    def is_killed_for_its_memory():
        eaten = b"x" * (400 << 20)
        os.kill(os.getpid(), signal.SIGKILL)
        return len(eaten)

    @task
    def returns_a_lock():
        return threading.Lock()

    @task
    def returns_a_generator():
        return (number for number in range(3))

    @task
    def leaves_a_thread():
        threading.Thread(target=time.sleep, args=(600,)).start()
        return "done"

    @task
    def sends_garbage():
        os.write(0, b"\0\0\0\5hello")
        return "done"

    for bad in (
        exits,
        crashes,
        raises_oddly,
        forks_and_returns_twice,
        closes_all_descriptors,
        floods,
        finds_no_memory,
        is_killed_for_its_memory,
        returns_a_lock,
        returns_a_generator,
        leaves_a_thread,
        sends_garbage,
    ):
        bad()


misbehaves()
