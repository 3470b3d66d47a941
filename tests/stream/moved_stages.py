"""Stages for processes of their own, which must be able to import them."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from headrace.testing import wait_until


def slowly(n: int, step_s: float = 0.01) -> Iterator[int]:
    """Goes on for as long as a process needs to start."""
    for number in range(n):
        time.sleep(step_s)  # the work of a step: a stage that waits for something outside
        yield number


def with_pid(items: Iterable[int]) -> Iterator[tuple[int, int]]:
    for item in items:
        yield item, os.getpid()


def pids_of(pairs: Iterable[tuple[int, int]]) -> tuple[int, set[int], int]:
    found = list(pairs)
    return sum(item for item, _ in found), {pid for _, pid in found}, os.getpid()


def _number(item: Any) -> int:
    return item if isinstance(item, int) else int(item[0])


def die_once(items: Iterable[Any], marker: Path, at: int) -> Iterator[Any]:
    for item in items:
        if _number(item) == at and not marker.exists():
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


class OnlyHere(Exception):
    """Can be pickled, and not unpickled."""

    def __init__(self, number: int, lock: object) -> None:
        super().__init__(number)
        self.lock = lock

    def __reduce__(self) -> tuple[Any, ...]:
        # As the base class does; but where a class leaves it to that, tblib pickles so that no constructor is called.
        return type(self), self.args, vars(self)


def only_here(items: Iterable[int]) -> Iterator[OnlyHere]:
    for item in items:
        yield OnlyHere(item, None)


def count_of(items: Iterable[Any]) -> tuple[int, int]:
    return sum(1 for _ in items), os.getpid()


def count_and_hide(items: Iterable[Any]) -> tuple[int, int]:
    """Counts what comes before its input ends, however that is."""
    found = 0
    try:
        for _ in items:
            found += 1
    except BaseException:
        pass
    return found, os.getpid()


def fail_only_here(items: Iterable[int]) -> Iterator[int]:
    yield from items
    raise OnlyHere(5, threading.Lock())


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


def made_by(n: int) -> Any:
    return with_pid(slowly(n))


def wait_for(marker: Path) -> Iterator[int]:
    yield 0
    wait_until(marker.exists, "the marker", 60.0)
    yield 1


def released_by(items: Iterable[int], marker: Path) -> list[int]:
    found = []
    for item in items:
        found.append(item)
        marker.touch()
    return found


def largest_of(items: Iterable[Any]) -> Any:
    return max(items, key=lambda item: int(item[0]))


def endless_arrays() -> Iterator[Any]:
    number = 0
    while True:
        yield np.full(100_000, number)
        number += 1


def frames_of(items: Iterable[Any]) -> list[int]:
    """For every item the bytes that this process maps of others' memory."""
    found = []
    for item in items:
        assert item.nbytes == 800_000
        with open("/proc/self/maps") as maps:
            ranges = [line.split()[0].split("-") for line in maps if "memfd:headrace" in line and "r" in line]
        found.append(sum(int(end, 16) - int(start, 16) for start, end in ranges))
    return found


def warned_and_logged(items: Iterable[int]) -> Iterator[int]:
    for item in items:
        warnings.warn("half way", UserWarning, stacklevel=1)
        yield item
    logging.getLogger("stages").warning("done")
