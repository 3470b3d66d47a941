"""The ledger: what may be freed, and when; by example, and against a model under random histories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.errors import InternalError
from headrace.store.ledger import Ledger, Segment


def test_released_object_without_readers_is_free_at_once() -> None:
    ledger = Ledger()
    ledger.published(7, 1, 4096, 8192)
    assert ledger.locate(7) == Segment(1, 4096, 8192)
    assert ledger.released(7) == [(1, 4096)]
    assert ledger.locate(7) is None
    assert ledger.size_bytes == 0


def test_readers_keep_it_until_the_last_has_closed() -> None:
    ledger = Ledger()
    ledger.published(7, 1, 0, 4096)
    for reader in (2, 3, 2):
        assert ledger.sent(7, reader) == []
    assert ledger.closed(7, 2) == []
    assert ledger.released(7) == []
    assert ledger.closed(7, 3) == []
    assert ledger.readers(7) == {2: 1}
    assert ledger.place_bytes(1) == ledger.size_bytes == 4096
    assert ledger.closed(7, 2) == [(1, 0)]
    assert ledger.place_bytes(1) == ledger.size_bytes == 0


def test_closed_by_all_but_not_released_is_kept() -> None:
    ledger = Ledger()
    ledger.published(7, 1, 0, 4096)
    ledger.sent(7, 2)
    assert ledger.closed(7, 2) == []
    assert ledger.locate(7) is not None


def test_a_lost_reader_holds_nothing() -> None:
    ledger = Ledger()
    ledger.published(7, 1, 0, 4096)
    ledger.published(8, 1, 4096, 4096)
    ledger.sent(7, 2)
    ledger.sent(8, 2)
    ledger.released(7)
    assert ledger.place_lost(2) == [(1, 0)]
    assert ledger.closed(8, 2) == []  # it was under way when the reader died
    assert ledger.sent(8, 2) == []
    assert ledger.released(8) == [(1, 4096)]


def test_what_a_lost_place_held_is_gone_and_not_freed() -> None:
    ledger = Ledger()
    ledger.published(7, 1, 0, 4096)
    ledger.sent(7, 2)
    assert ledger.place_lost(1) == []
    assert ledger.locate(7) is None
    assert ledger.size_bytes == 0
    assert ledger.published(9, 1, 0, 4096) == []  # it was under way
    assert ledger.locate(9) is None
    assert ledger.released(7) == []
    assert ledger.closed(7, 2) == []


def test_readers_of_a_lost_publication_count_for_the_next_one() -> None:
    ledger = Ledger()
    ledger.published(7, 1, 0, 4096)
    ledger.sent(7, 3)
    ledger.place_lost(1)
    ledger.published(7, 2, 8192, 4096)
    ledger.sent(7, 3)
    assert ledger.released(7) == []
    assert ledger.closed(7, 3) == []  # of the lost one or of the new one: nobody can tell
    assert ledger.closed(7, 3) == [(2, 8192)]


def test_an_object_can_be_published_again_while_its_old_memory_is_read() -> None:
    ledger = Ledger()
    ledger.published(7, 1, 0, 4096)
    ledger.sent(7, 3)
    assert ledger.released(7) == []
    ledger.published(7, 2, 0, 4096)
    assert ledger.size_bytes == 8192
    assert ledger.closed(7, 3) == [(1, 0)]
    assert ledger.locate(7) == Segment(2, 0, 4096)
    assert ledger.released(7) == [(2, 0)]


WRONG: dict[str, Callable[[Ledger], object]] = {
    "publish twice": lambda ledger: ledger.published(7, 2, 0, 4096),
    "send unpublished": lambda ledger: ledger.sent(8, 2),
    "send released": lambda ledger: (ledger.released(7), ledger.sent(7, 2)),
    "close unsent": lambda ledger: ledger.closed(7, 3),
    "close twice": lambda ledger: (ledger.closed(7, 2), ledger.closed(7, 2)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_bookkeeping_that_cannot_be_is_an_internal_error(wrong: str) -> None:
    ledger = Ledger()
    ledger.published(7, 1, 0, 4096)
    ledger.sent(7, 2)
    with pytest.raises(InternalError):
        WRONG[wrong](ledger)


def test_an_id_that_is_not_published_is_released_silently() -> None:
    assert Ledger().released(7) == []


@pytest.mark.parametrize("what", ["size_bytes", "_bytes", "_lost", "_entries"])
def test_check_notices_broken_books(what: str) -> None:
    ledger = Ledger()
    ledger.published(7, 1, 0, 4096)
    ledger.sent(7, 2)
    ledger.check()
    if what == "size_bytes":
        ledger.size_bytes += 1
    elif what == "_bytes":
        ledger._bytes[1] = 5
    elif what == "_lost":
        ledger._lost.add(2)
    else:
        ledger._entries[8] = ledger._entries[7]
    with pytest.raises(InternalError):
        ledger.check()


IDS = st.integers(0, 4)
PLACES = 6


class LedgerMachine(RuleBasedStateMachine):
    """Plays owners and readers, who know exactly what they hold, against the ledger, which only hears of it.

    The model holds real maps: (id, segment, reader), each opened by one sending. What the ledger frees must be released
    and mapped by nobody; and once nobody holds anything of an id, all its released memory must have been freed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.alive = set(range(PLACES))
        self.next_offset = 0
        self.current: dict[int, Segment] = {}
        self.draining: set[tuple[int, Segment]] = set()
        self.maps: Counter[tuple[int, Segment, int]] = Counter()

    def take(self, freed: list[tuple[int, int]]) -> None:
        assert len(freed) == len(set(freed)), "freed twice in one answer"
        for place, offset in freed:
            found = [(id, s) for id, s in self.draining if (s.place, s.offset) == (place, offset)]
            assert len(found) == 1, "freed what is not released, or was freed before"
            assert not any(n and segment == found[0][1] for (_, segment, _), n in self.maps.items()), "still mapped"
            self.draining.remove(found[0])

    @rule(id=IDS, place=st.integers(0, PLACES - 1), pages=st.integers(1, 3))
    def publish(self, id: int, place: int, pages: int) -> None:
        if id in self.current:
            return
        segment = Segment(place, self.next_offset, pages * 4096)
        self.next_offset += pages * 4096
        self.take(self.ledger.published(id, *segment))
        if place in self.alive:
            self.current[id] = segment

    @precondition(lambda self: self.current)
    @rule(data=st.data(), reader=st.integers(0, PLACES - 1))
    def send(self, data: st.DataObject, reader: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.current)))
        self.take(self.ledger.sent(id, reader))
        if reader in self.alive:
            self.maps[id, self.current[id], reader] += 1

    @precondition(lambda self: +self.maps)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(+self.maps)))
        self.maps[key] -= 1
        self.take(self.ledger.closed(key[0], key[2]))

    @precondition(lambda self: self.current)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.current)))
        self.draining.add((id, self.current.pop(id)))
        self.take(self.ledger.released(id))

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.remove(place)
        self.current = {id: s for id, s in self.current.items() if s.place != place}
        self.draining = {(id, s) for id, s in self.draining if s.place != place}
        self.maps = Counter({key: n for key, n in self.maps.items() if key[2] != place})
        self.take(self.ledger.place_lost(place))

    @invariant()
    def books_agree(self) -> None:
        self.ledger.check()
        held = list(self.current.values()) + [s for _, s in self.draining]
        assert self.ledger.size_bytes == sum(s.length for s in held)
        for place in range(PLACES):
            assert self.ledger.place_bytes(place) == sum(s.length for s in held if s.place == place)
        for id in range(5):
            assert self.ledger.locate(id) == self.current.get(id)
            readers: Counter[int] = Counter()
            for (mapped, _, reader), n in (+self.maps).items():
                readers[reader] += n if mapped == id else 0
            assert self.ledger.readers(id) == +readers
            assert readers or not any(drained == id for drained, _ in self.draining), "memory is lost"


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
