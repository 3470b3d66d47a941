"""Stages that die, for processes that must be able to import them. What they do is noted in files."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import headrace
from headrace.lanes.processes import worker
from headrace.testing import wait_until


def note(path: Path, what: object) -> None:
    with path.open("a") as file:
        file.write(f"{what}\n")


def noted(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def die_once(folder: Path, name: str, at: int, number: int) -> None:
    """Kills this process when it comes to ``at`` for the first time."""
    if number == at and not (folder / name).exists():
        (folder / name).touch()
        assert worker.in_worker()  # and not the tests' own process
        os.kill(os.getpid(), signal.SIGKILL)


def numbers(n: int, folder: Path, dies_at: int = -1, width: int = 0, waits_for: str = "") -> Iterator[Any]:
    """Each number, and the process that has made it."""
    for number in range(n):
        if number == dies_at and waits_for:
            wait_until((folder / waits_for).exists, waits_for, 60.0)
        die_once(folder, "producer", dies_at, number)
        yield (number, os.getpid()) if not width else np.full(width, number)


def range_of(n: int) -> Iterator[int]:
    yield from range(n)


def endless(folder: Path) -> Iterator[int]:
    """Goes on until the producer has died and is at work again."""
    yield 0
    wait_until((folder / "producer").exists, "the producer's death", 60.0)
    yield 1


def numbers_beside(others: Iterable[int], n: int, folder: Path) -> Iterator[Any]:
    """As ``numbers``, but reads a stream, so that it may go to a process in lane ``auto``."""
    next(iter(others))
    yield from numbers(n, folder, n - 1, 0, "told")


def gather(items: Iterable[Any], folder: Path, tells_at: int = -1) -> list[Any]:
    """All items; notes the number of each, and tells when it has come to one."""
    found = []
    for item in items:
        note(folder / "gathered", item[0])
        found.append(item)
        if item[0] == tells_at:
            (folder / "told").touch()
    return found


@headrace.resumable
def resumable_gather(items: Iterable[Any], folder: Path, tells_at: int = -1) -> list[Any]:
    return gather(items, folder, tells_at)


def swallowing(items: Iterable[Any], folder: Path, tells_at: int) -> list[Any]:
    """Hides whatever ends its input."""
    found: list[Any] = []
    try:
        for item in items:
            found.append(item)
            if item[0] == tells_at:
                (folder / "told").touch()
    except BaseException:
        note(folder / "swallowed", len(found))
    return found


def passed_on(items: Iterable[Any], folder: Path, tells_at: int = -1) -> Iterator[Any]:
    for item in items:
        note(folder / "passed", item[0])
        yield (*item, os.getpid())
        if item[0] == tells_at:
            (folder / "told").touch()


def spread(items: Iterable[Any], folder: Path, dies_at: int, times: Callable[[int], int]) -> Iterator[Any]:
    """Something before the items and behind them, and each of them so many times."""
    yield "begin"
    for item in items:
        number = int(item[0])
        note(folder / "spread", number)
        for copy in range(times(number)):
            if copy == times(number) // 2:
                die_once(folder, "spread-died", dies_at, number)
            yield number, copy
        if not times(number):
            die_once(folder, "spread-died", dies_at, number)
    yield "end"
    die_once(folder, "spread-died", dies_at, -2)


def once(number: int) -> int:
    return 1


def unevenly(number: int) -> int:
    return (0, 0, 3, 1, 0, 2)[number % 6]


def never(number: int) -> int:
    return 0


def spread_of(count: int, times: Callable[[int], int]) -> list[Any]:
    copies = [(number, copy) for number in range(count) for copy in range(times(number))]
    return ["begin", *copies, "end"]


@headrace.resumable
def resumable_spread(items: Iterable[Any], folder: Path, dies_at: int, times: Callable[[int], int]) -> Iterator[Any]:
    yield from spread(items, folder, dies_at, times)


@headrace.resumable
def doubled(items: Iterable[Any], folder: Path, dies_at: int) -> Iterator[Any]:
    for item in items:
        note(folder / "doubled", int(item[0]))
        die_once(folder, "doubled-died", dies_at, int(item[0]))
        yield item * 2


@headrace.resumable
def paired(one: Iterable[Any], other: Iterable[Any], folder: Path, dies_at: int) -> Iterator[Any]:
    for (first, _), (second, _) in zip(one, other, strict=True):
        note(folder / "paired", first)
        die_once(folder, "paired-died", dies_at, first)
        yield first, second


@headrace.resumable
def always_dies(items: Iterable[Any]) -> Iterator[Any]:
    yield from itertools.islice(items, 5)
    os._exit(3)


class Scaler:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @headrace.resumable
    def scale(self, items: Iterable[int]) -> Iterator[int]:
        for item in items:
            yield self.factor * item

    def plain(self, items: Iterable[int]) -> Iterator[int]:
        yield from items


class Counter:
    """An object that can be called."""

    def __call__(self, items: Iterable[int]) -> int:
        return sum(1 for _ in items)
