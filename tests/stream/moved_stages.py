"""Stages for processes of their own, which must be able to import them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def slowly(n: int, step_s: float = 0.01) -> Iterator[int]:
    """Goes on for as long as a process needs to start."""
    for number in range(n):
        time.sleep(step_s)
        yield number


def with_pid(items: Iterable[int]) -> Iterator[tuple[int, int]]:
    for item in items:
        yield item, os.getpid()


def pids_of(pairs: Iterable[tuple[int, int]]) -> tuple[int, set[int], int]:
    found = list(pairs)
    return sum(item for item, _ in found), {pid for _, pid in found}, os.getpid()


def die_once(items: Iterable[int], marker: Path, at: int) -> Iterator[int]:
    for item in items:
        if item == at and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield item


def die(items: Iterable[int]) -> int:
    for _ in items:
        os._exit(3)
    return 0


def fail_at(items: Iterable[int], at: int) -> Iterator[int]:
    for item in items:
        if item == at:
            raise KeyError(at)
        yield item


def note_end(items: Iterable[int], marker: Path) -> Iterator[int]:
    try:
        yield from items
    finally:
        marker.touch()


def with_lock(items: Iterable[int]) -> Iterator[Any]:
    for item in items:
        yield item, threading.Lock()


def arrays(n: int) -> Iterator[Any]:
    for number in slowly(n):
        yield np.full(100_000, number)


def scaled(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        item *= 2  # its own copy
        yield item


def total_of(items: Iterable[Any]) -> int:
    return sum(int(item[0]) for item in items)


def hashes(items: Iterable[int]) -> list[int]:
    return [hash(str(item)) for item in items]


def pid_of(items: Iterable[int]) -> int:
    return os.getpid() if list(items) else 0
