"""Raw graphs: what a scheduler costs a task, how it copes with Python code, and with large values."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tasks import add, inc, spin  # noqa: TID252  see headrace_bench
from .base import RawGraph, Workload


def make_array(fill: int) -> NDArray[np.float64]:
    return np.full(8_000_000, float(fill))


def double(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x * 2


def total(x: NDArray[np.float64]) -> float:
    return float(x.sum())


def make_big_array() -> NDArray[np.float64]:
    return np.ones(50_000_000)


def sum_part(x: NDArray[np.float64], part: int, parts: int) -> float:
    size = len(x) // parts
    return float(x[part * size : (part + 1) * size].sum())


def independent(count: int) -> RawGraph:
    dsk: dict[Hashable, Any] = {("inc", i): (inc, i) for i in range(count)}
    return RawGraph(dsk, list(dsk))


def chain(length: int) -> RawGraph:
    dsk: dict[Hashable, Any] = {("inc", 0): (inc, 0)}
    for i in range(1, length):
        dsk["inc", i] = (inc, ("inc", i - 1))
    return RawGraph(dsk, [("inc", length - 1)])


def tree(leaves: int) -> RawGraph:
    """Leaves of ``inc``, summed in pairs up to one root; ``leaves`` is a power of two."""
    dsk: dict[Hashable, Any] = {("add", 0, i): (inc, i) for i in range(leaves)}
    level, width = 0, leaves
    while width > 1:
        level, width = level + 1, width // 2
        for i in range(width):
            dsk["add", level, i] = (add, ("add", level - 1, 2 * i), ("add", level - 1, 2 * i + 1))
    return RawGraph(dsk, [("add", level, 0)])


def pure_python(count: int) -> RawGraph:
    dsk: dict[Hashable, Any] = {("spin", i): (spin, i) for i in range(count)}
    return RawGraph(dsk, list(dsk))


def two_stages(count: int) -> RawGraph:
    """``count`` arrays of 64 MB are made, then each is doubled into another 64 MB, then summed."""
    dsk: dict[Hashable, Any] = {}
    for i in range(count):
        dsk["make", i] = (make_array, i)
        dsk["double", i] = (double, ("make", i))
        dsk["total", i] = (total, ("double", i))
    return RawGraph(dsk, [("total", i) for i in range(count)])


def one_for_many(readers: int) -> RawGraph:
    """One array of 400 MB, of which each reader sums its part."""
    dsk: dict[Hashable, Any] = {"big": (make_big_array,)}
    for i in range(readers):
        dsk["sum", i] = (sum_part, "big", i, readers)
    return RawGraph(dsk, [("sum", i) for i in range(readers)])


WORKLOADS = (
    Workload("inc10k", "10,000 independent inc", lambda: independent(10_000)),
    Workload("chain2k", "chain of 2,000 inc", lambda: chain(2_000)),
    Workload("tree4k", "tree of 4,096 leaves", lambda: tree(4_096)),
    Workload("python400", "400 pure-Python tasks of 2.6 ms", lambda: pure_python(400)),
    Workload("arrays16", "16 x 64 MB arrays, two stages", lambda: two_stages(16)),
    Workload("array400mb", "one 400 MB array, 32 readers", lambda: one_for_many(32)),
)
