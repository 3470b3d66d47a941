"""The credits of one stream, and circles of waits: pure, so every rule is stated exactly."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.stream.machine import Flow
from headrace.stream.waits import find_circle


def flow_of(*sizes: int, budget: int) -> Flow:
    flow = Flow(budget)
    flow.handles = 1
    for size in sizes:
        flow.produced(size)
    return flow


def test_a_stream_that_nobody_reads_is_kept_and_stops_at_the_budget() -> None:
    flow = flow_of(4, 5, budget=10)
    assert (flow.paused, flow.first, flow.next) == (False, 0, 2)
    assert flow.produced(1) == range(0)
    assert (flow.paused, flow.held_bytes, flow.unread_bytes) == (True, 10, 10)


def test_chunks_go_only_beyond_the_budget_and_only_when_all_readers_are_past() -> None:
    flow = flow_of(budget=10)
    assert flow.began(1)
    assert flow.began(2)
    for _ in range(3):
        assert flow.produced(5) == range(0)
    assert flow.paused
    assert flow.advanced(1, 3) == range(0)
    assert flow.paused  # for the second one
    assert flow.advanced(2, 2) == range(1)
    assert not flow.paused
    assert (flow.first, flow.held_bytes) == (1, 10)
    assert flow.produced(5) == range(1, 2)
    assert not flow.began(3)  # too late: it must read a replay


def test_the_expected_hold_the_start() -> None:
    flow = flow_of(budget=10)
    flow.expected.add(7)
    assert flow.began(1)
    flow.produced(20)
    assert flow.advanced(1, 1) == range(0)
    assert flow.paused
    assert flow.holders() == ([], [7])
    flow.expected.discard(7)
    assert flow.left(1) == range(0)  # whoever has the handle may still begin
    assert flow.began(2)
    assert flow.advanced(2, 1) == range(1)
    assert not flow.paused


def test_a_stream_is_unwanted_without_reader_handle_and_expectation() -> None:
    flow = flow_of(budget=10)
    assert flow.began(1)
    flow.handles = 0
    assert not flow.unwanted
    flow.left(1)
    assert flow.unwanted
    flow.expected.add(3)
    assert not flow.unwanted


def test_who_waits_for_the_end_has_everything_made_and_kept() -> None:
    flow = flow_of(budget=10)
    assert flow.began(1)
    flow.hurry += 1
    for _ in range(5):
        assert flow.produced(10) == range(0)
    assert flow.advanced(1, 5) == range(0)
    assert not flow.paused
    flow.hurry -= 1
    assert flow.advanced(1, 5) == range(4)


def test_growing_lets_the_producer_go_on() -> None:
    flow = flow_of(100, budget=10)
    assert flow.paused
    flow.grow()
    assert not flow.paused


def test_a_producer_that_begins_again_has_made_nothing_yet() -> None:
    flow = flow_of(budget=10)
    assert flow.began(1)
    for chunk in range(3):
        flow.produced(10)
        flow.advanced(1, chunk + 1)
    assert not flow.began(2)
    flow.began_again()
    assert (flow.first, flow.next, flow.held_bytes, flow.unread_bytes, flow.readers) == (0, 0, 0, 0, {1: 0})
    assert flow.began(2)


class AnyFlow(RuleBasedStateMachine):
    """Compared with the rules as they are written: nothing that is needed goes, no more is kept than is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow(100)
        self.flow.handles = 1
        self.sizes: list[int] = []
        self.kept: set[int] = set()
        self.at: dict[int, int] = {}
        self.readers = 0

    def go(self, chunks: range) -> None:
        for chunk in chunks:
            self.kept.remove(chunk)
            assert all(at > chunk for at in self.at.values())
            assert not (self.flow.expected and self.flow.first == 0)

    @rule(size=st.integers(1, 120))
    @precondition(lambda self: not self.flow.paused)
    def produce(self, size: int) -> None:
        self.kept.add(len(self.sizes))
        self.sizes.append(size)
        self.go(self.flow.produced(size))

    @rule()
    def begin(self) -> None:
        self.readers += 1
        if self.flow.began(self.readers):
            self.at[self.readers] = 0
        else:
            assert 0 not in self.kept

    @rule(task=st.integers(1, 3), comes=st.booleans())
    def expect(self, task: int, comes: bool) -> None:
        (self.flow.expected.add if comes else self.flow.expected.discard)(task)

    @rule(data=st.data())
    @precondition(lambda self: any(at < len(self.sizes) for at in self.at.values()))
    def read(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from([r for r, at in self.at.items() if at < len(self.sizes)]))
        self.at[reader] += 1
        self.go(self.flow.advanced(reader, self.at[reader]))

    @rule()
    def make_again(self) -> None:
        self.flow.began_again()
        self.sizes.clear()
        self.kept.clear()
        self.at = dict.fromkeys(self.at, 0)

    @rule(data=st.data())
    @precondition(lambda self: self.at)
    def leave(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(list(self.at)))
        del self.at[reader]
        self.go(self.flow.left(reader))

    @invariant()
    def holds_what_it_says(self) -> None:
        flow = self.flow
        assert self.kept == set(range(flow.first, flow.next))
        assert flow.held_bytes == sum(self.sizes[chunk] for chunk in self.kept)
        if flow.paused and (self.at or (flow.expected and flow.first == 0)):
            assert any(flow.holders())


TestAnyFlow = AnyFlow.TestCase


def test_a_circle_is_found_wherever_it_can_be_reached() -> None:
    waits = {1: [2], 2: [3, 4], 3: [], 4: [5], 5: [2]}
    assert find_circle(1, waits.__getitem__) == [2, 4, 5]
    waits[5] = []
    assert find_circle(1, waits.__getitem__) == []


@given(st.dictionaries(st.integers(0, 7), st.lists(st.integers(0, 7), max_size=3)))
def test_a_circle_is_one_and_is_not_missed(waits: dict[int, list[int]]) -> None:
    circle = find_circle(0, lambda node: waits.get(node, []))
    for one, other in zip(circle, [*circle[1:], *circle[:1]], strict=True):
        assert other in waits[one]
    seen, stack = set(), [0]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack += waits.get(node, [])
    if not circle:  # then those that can be reached can be put in order
        left = set(seen)
        while free := {node for node in left if not left.intersection(waits.get(node, []))}:
            left -= free
        assert not left
