"""The arena's allocator, and the ranges it counts with, against models that remember every page and every byte."""

from __future__ import annotations

import itertools
import os
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.store.ranges import RangeSet
from headrace.store.segments import Arena, Atlas, Reading, layout

PAGE = os.sysconf("SC_PAGESIZE")
PAGES = 48

bounds = st.tuples(st.integers(0, 30), st.integers(1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(st.tuples(st.booleans(), bounds), max_size=40), st.integers(1, 12))
@settings(deadline=None)
def test_range_set_is_a_set(steps: list[tuple[bool, tuple[int, int]]], length: int) -> None:
    ranges, model = RangeSet(), set[int]()
    for adding, (start, end) in steps:
        touched = set(range(start, end))
        if adding:
            ranges.add(start, end)
            model |= touched
        else:
            pieces = ranges.cut(start, end)
            assert all(first < last for first, last in pieces)
            assert sorted(x for first, last in pieces for x in range(first, last)) == sorted(model & touched)
            model -= touched
        kept = list(ranges)
        assert {x for first, last in kept for x in range(first, last)} == model
        assert all(first < last for first, last in kept)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(kept)), "not merged"
        assert ranges.size == len(model)
    fits = [x for x in range(40) if set(range(x, x + length)) <= model]
    assert ranges.first_fit(length) == (min(fits) if fits else None)


class ArenaMachine(RuleBasedStateMachine):
    """Puts, frees and trims at random; the model is a set of pages in use, a set of pages ever written, and bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(1, PAGES * PAGE)
        self.atlas = Atlas()
        self.atlas.attach(1, os.dup(self.arena.fd))
        self.closed: list[int] = []
        self.used: dict[int, tuple[int, tuple[int, ...], list[bytes]]] = {}
        self.backed: set[int] = set()

    def teardown(self) -> None:
        self.arena.close()
        self.atlas.close()

    def pages(self, offset: int, length: int) -> set[int]:
        return set(range(offset // PAGE, (offset + length) // PAGE))

    def used_pages(self) -> set[int]:
        return {page for offset, (length, _, _) in self.used.items() for page in self.pages(offset, length)}

    @rule(
        sizes=st.lists(st.one_of(st.integers(0, 300), st.integers(0, 10 * PAGE)), max_size=4),
        seed=st.integers(0, 1 << 32),
    )
    def put(self, sizes: list[int], seed: int) -> None:
        content = [random.Random(seed + n).randbytes(size) for n, size in enumerate(sizes)]
        wanted = layout(sizes)[1] // PAGE
        free = set(range(PAGES)) - self.used_pages()
        fits = [p for p in range(PAGES) if set(range(p, p + wanted)) <= free]
        warm = [p for p in fits if set(range(p, p + wanted)) <= self.backed]
        try:
            offset, length, stored = self.arena.put([memoryview(c) for c in content])
        except MemoryError:
            assert not fits, "there is room, so free ranges were lost or not merged"
            return
        assert length == wanted * PAGE
        assert stored == tuple(sizes)
        assert offset // PAGE == min(warm or fits), "first fit over the pages that are backed, else over all"
        self.used[offset] = (length, stored, content)
        self.backed |= self.pages(offset, length)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.used)))
        del self.used[offset]
        self.arena.free(offset)

    @rule(keep=st.integers(0, PAGES))
    def trim(self, keep: int) -> None:
        unused = sorted(self.backed - self.used_pages())
        given_back = unused[keep:]
        assert self.arena.trim(keep * PAGE) == len(given_back) * PAGE
        self.backed -= set(given_back)
        for page in given_back:
            assert os.pread(self.arena.fd, PAGE, page * PAGE) == bytes(PAGE)

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.used)))
        length, sizes, content = self.used[offset]
        before = len(self.closed)
        views = self.atlas.map(1, offset, length, sizes, Reading(lambda: self.closed.append(offset)))
        assert [bytes(view) for view in views] == content
        while views:
            view = views.pop()
            view[:] = bytes(len(view))  # private: the invariant sees that the arena is unchanged
        view = memoryview(b"")
        assert len(self.closed) == before + 1

    @invariant()
    def no_byte_is_lost(self) -> None:
        pages = [page for offset, (length, _, _) in self.used.items() for page in self.pages(offset, length)]
        assert len(pages) == len(set(pages)), "two objects share a page"
        for offset, (_, sizes, content) in self.used.items():
            for start, expected in zip(layout(sizes)[0], content, strict=True):
                assert os.pread(self.arena.fd, len(expected), offset + start) == expected
        stats = self.arena.stats()
        assert stats["objects"] == len(self.used)
        assert stats["used_bytes"] == len(pages) * PAGE
        assert stats["free_bytes"] == len(self.backed - set(pages)) * PAGE
        assert stats["resident_bytes"] <= len(self.backed) * PAGE
        assert self.arena._free.size + stats["used_bytes"] == self.arena.capacity


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
