"""The gate: never more inside than there may be, and whoever is killed inside makes room."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

from headrace.testing import wait_until
from headrace_airflow.gate import Gate


def fork(does: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            does()
        finally:
            os._exit(0)
    return pid


def test_as_many_are_inside_as_may_be_and_no_more(tmp_path: Path) -> None:
    gate = Gate(3)
    log = os.open(tmp_path / "log", os.O_CREAT | os.O_APPEND | os.O_RDWR)

    def goes_in_and_out() -> None:
        for _ in range(5):
            with gate.entered():
                os.write(log, b"+")
                wait_until(lambda: (tmp_path / "log").read_text().count("+") >= 3, timeout_s=60)
                os.write(log, b"-")

    for pid in [fork(goes_in_and_out) for _ in range(8)]:
        os.waitpid(pid, 0)
    moves = [1 if move == "+" else -1 for move in (tmp_path / "log").read_text()]
    assert len(moves) == 2 * 8 * 5
    assert max(accumulate(moves)) == 3
    os.close(log)
    os.close(gate._fd)


def test_each_thread_counts() -> None:
    gate = Gate(4)

    def is_free(byte: int) -> bool:
        try:
            fcntl.lockf(gate._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except BlockingIOError:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        inside = threading.Barrier(4)

        def stays() -> None:
            with gate.entered():
                inside.wait(30)
                inside.wait(30)

        for _ in range(3):
            pool.submit(stays)
        inside.wait(30)
        free = fork(lambda: os._exit(sum(map(is_free, range(4)))))
        assert os.waitstatus_to_exitcode(os.waitpid(free, 0)[1]) == 1
        inside.wait(30)
    free = fork(lambda: os._exit(sum(map(is_free, range(4)))))
    assert os.waitstatus_to_exitcode(os.waitpid(free, 0)[1]) == 4
    os.close(gate._fd)


def test_who_is_killed_inside_makes_room(tmp_path: Path) -> None:
    gate = Gate(1)
    inside = tmp_path / "inside"

    def stays() -> None:
        with gate.entered():
            inside.touch()
            signal.pause()

    pid = fork(stays)
    wait_until(inside.exists, timeout_s=30)
    waiting = fork(lambda: gate.entered().__enter__())
    assert os.waitpid(waiting, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert os.waitpid(waiting, 0) == (waiting, 0)
    os.close(gate._fd)
