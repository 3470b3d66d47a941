"""Task functions without any import, so that a scheduler's first result is not the import of numpy in its workers."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

SPIN_LOOPS = 60_000  # 2.6 ms of pure Python on the machine of the bounds


def inc(x: int) -> int:
    return x + 1


def add(x: int, y: int) -> int:
    return x + y


def spin(seed: int, loops: int = SPIN_LOOPS) -> int:
    """Holds the GIL all the time it runs."""
    total = seed
    for i in range(loops):
        total += i * i % 7
    return total


def small_graph() -> tuple[dict[Hashable, Any], list[Hashable], tuple[int, ...]]:
    """(dsk, keys, the right result): ten tasks, to see how long a scheduler takes to its first result."""
    dsk: dict[Hashable, Any] = {("inc", i): (inc, i) for i in range(5)}
    dsk |= {("add", i): (add, ("inc", i), i) for i in range(5)}
    return dsk, [("add", i) for i in range(5)], tuple(2 * i + 1 for i in range(5))
