"""Sets of integers kept as ranges: what the arena's allocator counts its pages with. Pure.

Invariant: ranges are half-open, not empty, sorted, disjoint and never adjacent (neighbours are merged at once).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class RangeSet:
    """A set of integers; adding and cutting cost a binary search and a list insertion."""

    __slots__ = ("_ends", "_starts", "size")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.size = 0
        """How many integers are in the set."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def add(self, start: int, end: int) -> None:
        """Adds ``[start, end)``, of which any part may be in the set already."""
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
            self.size -= sum(self._ends[first:last]) - sum(self._starts[first:last])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        self.size += end - start

    def cut(self, start: int, end: int) -> list[tuple[int, int]]:
        """Removes ``[start, end)``, of which any part may be missing; returns the pieces that were really removed."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return []
        pieces = [
            (max(s, start), min(e, end)) for s, e in zip(self._starts[first:last], self._ends[first:last], strict=True)
        ]
        left, right = self._starts[first], self._ends[last - 1]
        kept = ([(left, start)] if left < start else []) + ([(end, right)] if end < right else [])
        self._starts[first:last] = [s for s, _ in kept]
        self._ends[first:last] = [e for _, e in kept]
        self.size -= sum(e - s for s, e in pieces)
        return pieces

    def first_fit(self, length: int) -> int | None:
        """The start of the lowest range that holds ``length`` integers."""
        if length <= self.size:
            for start, end in zip(self._starts, self._ends, strict=True):
                if end - start >= length:
                    return start
        return None
