"""The store's books: each row of the module's table, and random histories against a model that forgets nothing."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.errors import InternalError
from headrace_airflow.store.ledger import FIRST_RETRY_S, Drop, Erase, Ledger, Slot, Write

BUDGET, TTL_S, GRACE_S, WARM_S = 100, 1000.0, 10.0, 50.0
A, B = Slot("dag", "run", "task", -1, "a"), Slot("dag", "run", "task", -1, "b")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(BUDGET, TTL_S, GRACE_S, WARM_S)


def put(ledger: Ledger, id: str, slot: Slot = A, size: int = 10, now_s: float = 0.0, *, kept: bool = True) -> None:
    place, _ = ledger.reserved(99, size)
    ledger.given_back(99)
    ledger.put(id, slot, size, place, now_s)
    if kept:
        ledger.written(id)


def test_what_is_put_is_written(ledger: Ledger) -> None:
    assert ledger.put("x", A, 10, "memory", 0.0) == [Write("x")]
    assert ledger.undurable() == ["x"]
    ledger.written("x")
    assert ledger.undurable() == []


def test_a_later_push_replaces_an_earlier_one_after_the_grace(ledger: Ledger) -> None:
    put(ledger, "old")
    assert ledger.put("new", A, 10, "memory", 1.0) == [Write("new")]
    assert ledger.opened("old", 1, 2.0) == "memory", "somebody had its reference before"
    ledger.closed("old", 1)
    assert ledger.ticked(1.0 + GRACE_S) == [Erase("old")]
    assert ledger.opened("old", 1, 12.0) is None
    assert ledger.opened("new", 1, 12.0) == "memory"


def test_nothing_is_erased_while_it_is_read(ledger: Ledger) -> None:
    put(ledger, "x")
    ledger.opened("x", 1, 0.0)
    ledger.opened("x", 1, 0.0)
    assert ledger.deleted("x", 0.0) == []
    assert ledger.ticked(500.0) == []
    ledger.closed("x", 1)
    assert ledger.ticked(500.0) == []
    ledger.reader_lost(1)
    assert ledger.ticked(500.0) == [Erase("x")]


def test_pressure_drops_the_longest_unused(ledger: Ledger) -> None:
    put(ledger, "x", A, 50, 0.0)
    put(ledger, "y", B, 50, 1.0)
    ledger.opened("x", 1, 2.0)
    ledger.closed("x", 1)
    assert ledger.reserved(1, 40) == ("memory", [Drop("y")])
    assert ledger.opened("y", 1, 3.0) == "away"


def test_pressure_drops_what_was_deleted_first(ledger: Ledger) -> None:
    put(ledger, "x", A, 50, 0.0)
    put(ledger, "y", B, 50, 1.0)
    ledger.deleted("y", 2.0)
    assert ledger.reserved(1, 40) == ("memory", [Drop("y")])


@pytest.mark.parametrize("state", ["undurable", "failed", "read"])
def test_what_must_stay_stays_and_the_new_value_is_spilled(ledger: Ledger, state: str) -> None:
    put(ledger, "x", A, 80, kept=False)
    if state == "failed":
        ledger.write_failed("x", "disk full", 0.0)
    if state == "read":
        ledger.written("x")
        ledger.opened("x", 1, 0.0)
    assert ledger.reserved(1, 40) == ("file", [])
    assert ledger.opened("x", 2, 0.0) == "memory"


def test_a_value_beyond_the_budget_drops_nothing(ledger: Ledger) -> None:
    put(ledger, "x", A, 80)
    assert ledger.reserved(1, BUDGET + 1) == ("file", [])
    assert ledger.opened("x", 1, 0.0) == "memory"


def test_reservations_count_until_they_are_given_back(ledger: Ledger) -> None:
    assert ledger.reserved(1, BUDGET) == ("memory", [])
    assert ledger.reserved(2, 1) == ("file", [])
    ledger.given_back(1)
    ledger.given_back(2)
    assert ledger.memory_bytes == 0
    with pytest.raises(InternalError):
        ledger.reserved(1, 1), ledger.reserved(1, 1)


def test_failed_copies_are_tried_again_ever_later(ledger: Ledger) -> None:
    put(ledger, "x", kept=False)
    ledger.write_failed("x", "unreachable", 0.0)
    assert ledger.entries["x"].reason == "unreachable"
    assert ledger.ticked(FIRST_RETRY_S - 0.1) == []
    assert ledger.ticked(FIRST_RETRY_S) == [Write("x")]
    ledger.write_failed("x", "unreachable", 10.0)
    assert ledger.ticked(10.0 + FIRST_RETRY_S) == []
    assert ledger.ticked(10.0 + 2 * FIRST_RETRY_S) == [Write("x")]
    ledger.write_failed("x", "unreachable", 20.0)
    assert ledger.retried() == [Write("x")], "at the end nobody waits"


def test_what_nobody_uses_leaves_memory_and_comes_back(ledger: Ledger) -> None:
    put(ledger, "x")
    assert ledger.ticked(WARM_S) == [Drop("x")]
    assert ledger.memory_bytes == 0
    assert ledger.opened("x", 1, WARM_S) == "away"
    ledger.restored("x", A, 10, "memory", WARM_S)
    assert ledger.opened("x", 1, WARM_S) == "memory"
    ledger.check()


def test_undurable_values_stay_in_memory_for_ever(ledger: Ledger) -> None:
    put(ledger, "x", kept=False)
    assert ledger.ticked(WARM_S) == []


def test_after_a_restart_a_restored_object_is_known_again(ledger: Ledger) -> None:
    assert ledger.opened("x", 1, 0.0) is None
    ledger.restored("x", A, 10, "file", 0.0)
    assert ledger.memory_bytes == 0
    assert ledger.put("new", A, 10, "memory", 0.0) == [Write("new")]
    assert ledger.ticked(GRACE_S) == [Erase("x")], "a new try replaces it all the same"


def test_a_copy_that_cannot_be_read_is_forgotten(ledger: Ledger) -> None:
    put(ledger, "x")
    ledger.ticked(WARM_S)
    ledger.copy_lost("x")
    assert ledger.opened("x", 1, WARM_S) is None


def test_a_run_that_nobody_touches_ends_as_a_whole(ledger: Ledger) -> None:
    put(ledger, "x", A, now_s=0.0)
    put(ledger, "y", B, now_s=900.0)
    put(ledger, "z", A._replace(run_id="other"), now_s=0.0)
    assert Erase("x") not in ledger.ticked(TTL_S), "y was put later, and a clear may need x with it"
    commands = ledger.ticked(900.0 + TTL_S)
    assert {c for c in commands if isinstance(c, Erase)} == {Erase("x"), Erase("y")}
    assert ledger.entries == {}


def test_reading_keeps_a_run_alive(ledger: Ledger) -> None:
    put(ledger, "x")
    ledger.opened("x", 1, 0.0)
    assert Erase("x") not in ledger.ticked(2 * TTL_S)
    ledger.closed("x", 1)
    assert ledger.ticked(2 * TTL_S) == [Erase("x")]


def test_without_a_time_to_live_nothing_ends() -> None:
    ledger = Ledger(BUDGET, 0.0, GRACE_S, WARM_S)
    put(ledger, "x")
    assert ledger.ticked(1e9) == [Drop("x")]


def test_strangers_are_ignored(ledger: Ledger) -> None:
    ledger.written("x")
    ledger.write_failed("x", "", 0.0)
    ledger.closed("x", 1)
    ledger.copy_lost("x")
    ledger.given_back(1)
    assert ledger.deleted("x", 0.0) == []
    ledger.check()


class LedgerMachine(RuleBasedStateMachine):
    """Random histories. The model remembers every object ever put, and what was said of it."""

    @initialize()
    def begin(self) -> None:
        self.ledger = Ledger(BUDGET, TTL_S, GRACE_S, WARM_S)
        self.now_s = 0.0
        self.count = 0
        self.slots: dict[str, Slot] = {}
        self.copies: set[str] = set()
        """Objects with a durable copy."""
        self.deleted: dict[str, float] = {}
        self.erased: set[str] = set()
        self.reading: dict[tuple[str, int], int] = {}
        self.used_s: dict[str, float] = {}
        self.writing: set[str] = set()

    def read_by_anybody(self, id: str) -> bool:
        return any(other == id for other, _ in self.reading)

    def perform(self, commands: list[object]) -> None:
        for command in commands:
            if isinstance(command, Write):
                assert command.id not in self.erased
                self.writing.add(command.id)
            elif isinstance(command, Drop):
                assert command.id in self.copies, "the only copy is dropped"
                assert not self.read_by_anybody(command.id)
            elif isinstance(command, Erase):
                assert command.id not in self.erased, "erased twice"
                assert not self.read_by_anybody(command.id)
                self.assert_erasable(command.id)
                self.erased.add(command.id)

    def assert_erasable(self, id: str) -> None:
        run = self.slots[id][:2]
        run_used_s = max(self.used_s[other] for other, slot in self.slots.items() if slot[:2] == run)
        deleted = id in self.deleted and self.now_s - self.deleted[id] >= GRACE_S
        assert deleted or self.now_s - run_used_s >= TTL_S, "somebody may still need it"

    def known(self) -> list[str]:
        return sorted(self.slots.keys() - self.erased)

    @rule(run=st.sampled_from("rs"), key=st.sampled_from("ab"), size=st.integers(0, 130), kept=st.booleans())
    def put(self, run: str, key: str, size: int, kept: bool) -> None:
        self.count += 1
        id, slot = f"o{self.count}", Slot("dag", run, "task", -1, key)
        place, commands = self.ledger.reserved(1, size)
        self.perform(list(commands))
        assert place == "file" or size <= BUDGET
        self.ledger.given_back(1)
        for other, its in self.slots.items():
            if its == slot:
                self.deleted.setdefault(other, self.now_s)
        self.slots[id], self.used_s[id] = slot, self.now_s
        self.perform(list(self.ledger.put(id, slot, size, place, self.now_s)))
        if kept:
            self.writing.discard(id)
            self.copies.add(id)
            self.ledger.written(id)

    @precondition(lambda self: self.writing)
    @rule(data=st.data(), works=st.booleans())
    def write_ends(self, data: st.DataObject, works: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.writing)))
        self.writing.discard(id)
        if works:
            self.copies.add(id)
            self.ledger.written(id)
        else:
            self.ledger.write_failed(id, "no", self.now_s)

    @precondition(lambda self: self.known())
    @rule(data=st.data(), reader=st.integers(1, 2), remote=st.booleans())
    def open(self, data: st.DataObject, reader: int, remote: bool) -> None:
        id = data.draw(st.sampled_from(self.known()))
        place = self.ledger.opened(id, reader, self.now_s)
        assert place is not None, "an object that was not erased is unknown"
        self.used_s[id] = self.now_s
        if place == "away":
            size = self.ledger.entries[id].size_bytes
            target, commands = self.ledger.reserved(2, size) if remote else ("file", [])
            self.perform(list(commands))
            self.ledger.given_back(2)
            self.ledger.restored(id, self.slots[id], size, target, self.now_s)
            assert self.ledger.opened(id, reader, self.now_s) == target
        self.reading[id, reader] = self.reading.get((id, reader), 0) + 1

    @precondition(lambda self: self.reading)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        held = data.draw(st.sampled_from(sorted(self.reading)))
        self.reading[held] -= 1
        if not self.reading[held]:
            del self.reading[held]
        self.ledger.closed(*held)

    @rule(reader=st.integers(1, 2))
    def lose_reader(self, reader: int) -> None:
        self.ledger.reader_lost(reader)
        self.reading = {held: count for held, count in self.reading.items() if held[1] != reader}

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(self.known()))
        self.deleted.setdefault(id, self.now_s)
        self.perform(list(self.ledger.deleted(id, self.now_s)))

    @rule(seconds=st.sampled_from([0.0, 1.0, GRACE_S, WARM_S, TTL_S]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.perform(list(self.ledger.ticked(self.now_s)))

    @invariant()
    def books_are_right(self) -> None:
        self.ledger.check()
        assert set(self.ledger.entries) == set(self.known())


TestLedgerMachine = LedgerMachine.TestCase
