"""What a node's store keeps, where, and for how long. Pure: no I/O, no clock, no thread.

An object is what one push of one XCom stored. It has a *place* (``memory``; ``file``: spilled, or a durable copy that
is mapped as it is; ``away``: only the durable copy) and a durable copy that is ``pending``, ``kept`` or ``failed``:

======================  ==============================================================================================
it was put              its durable copy is written; an older object of the same slot counts as deleted
its copy is written     it may leave memory from now on: when nobody reads it and room is needed, or nobody has used it
                        for ``warm_s``
its copy failed         it stays, and the write is tried again: after ``FIRST_RETRY_S``, then twice as long each time
it is read              it counts as used, its run too; what is read is never dropped nor erased
it was deleted          (cleared, a new try, the REST API, a collector) it is erased when ``grace_s`` are over and
                        nobody reads it: somebody who had its reference before can still read it
its run is too old      nobody put or read anything of the run for ``ttl_s``: as if all of it was deleted long ago
room is needed          deleted objects go first, then the longest unused; if that is not enough nothing goes, and the
                        new object is spilled
======================  ==============================================================================================

Invariants: what has no durable copy is in memory or in a file, whatever the pressure; bytes in memory, reservations
included, never exceed the budget; an object is erased at most once, and never while it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, TypeAlias

from headrace.errors import InternalError

FIRST_RETRY_S: Final = 2.0
LONGEST_RETRY_S: Final = 300.0

Place = Literal["memory", "file", "away"]
Durable = Literal["pending", "kept", "failed"]


class Slot(NamedTuple):
    """What one XCom is called. A later push into the same slot replaces an earlier one."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    key: str


@dataclass(frozen=True, slots=True)
class Write:
    """Make the durable copy of an object."""

    id: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Let go of an object's memory or file; its durable copy stays."""

    id: str


@dataclass(frozen=True, slots=True)
class Erase:
    """Let go of an object altogether, the durable copy included. It is not known any more."""

    id: str


Command: TypeAlias = "Write | Drop | Erase"


@dataclass(slots=True)
class Entry:
    """What is known of one object; for reading only."""

    slot: Slot
    size_bytes: int
    place: Place
    durable: Durable
    used_s: float
    readers: dict[int, int] = field(default_factory=dict)
    """Reader → times it has the object open. No zeros."""
    deleted_s: float | None = None
    failures: int = 0
    retry_s: float = 0.0
    reason: str = ""


class Ledger:
    """The books of one store. Times are seconds on any clock that never goes back.

    Args:
        budget_bytes: the most that may be in memory.
        ttl_s: 0: runs are never too old.
        grace_s: see the module, like ``warm_s``.
    """

    def __init__(self, budget_bytes: int, ttl_s: float, grace_s: float, warm_s: float) -> None:
        self.budget_bytes = budget_bytes
        self.memory_bytes = 0
        """Of objects in memory, and reserved."""
        self.entries: dict[str, Entry] = {}
        self._ttl_s, self._grace_s, self._warm_s = ttl_s, grace_s, warm_s
        self._current: dict[Slot, str] = {}
        self._reserved: dict[int, int] = {}
        self._runs: dict[tuple[str, str], float] = {}
        """(DAG, run) → when it was last used."""

    def reserved(self, ticket: int, size_bytes: int) -> tuple[Place, list[Command]]:
        """Somebody is about to put, or restore, so many bytes; says where they go.

        Args:
            ticket: names the reservation until it is put or given back; never used twice at the same time.
        """
        if ticket in self._reserved:
            raise InternalError(f"ticket {ticket} is taken")
        room = self.budget_bytes - self.memory_bytes
        commands: list[Command] = []
        if size_bytes > room:
            victims = self._victims(size_bytes - room) if size_bytes <= self.budget_bytes else None
            if victims is None:
                return "file", []
            commands = [self._drop(id) for id in victims]
        self._reserved[ticket] = size_bytes
        self.memory_bytes += size_bytes
        return "memory", commands

    def given_back(self, ticket: int) -> None:
        """A reservation is not used after all. Unknown tickets are ignored: those of files are."""
        self.memory_bytes -= self._reserved.pop(ticket, 0)

    def put(self, id: str, slot: Slot, size_bytes: int, place: Place, now_s: float) -> list[Command]:
        """A value was stored, whose reservation was given back just before."""
        commands: list[Command] = []
        before = self._current.get(slot)
        if before is not None:
            commands = self.deleted(before, now_s)
        self._add(id, Entry(slot, size_bytes, place, "pending", now_s))
        self._current[slot] = id
        return [*commands, Write(id)]

    def restored(self, id: str, slot: Slot, size_bytes: int, place: Place, now_s: float) -> None:
        """A durable copy was brought back; the object may be unknown, as after a restart."""
        entry = self.entries.get(id)
        if entry is None:
            self._add(id, Entry(slot, size_bytes, place, "kept", now_s))
            self._current.setdefault(slot, id)
        elif entry.place == "away":
            entry.place = place
            entry.used_s = now_s
            self.memory_bytes += size_bytes if place == "memory" else 0

    def opened(self, id: str, reader: int, now_s: float) -> Place | None:
        """Somebody wants to read an object; where it is. Counted as reading, unless it is away or unknown."""
        entry = self.entries.get(id)
        if entry is None:
            return None
        self._use(entry, now_s)
        if entry.place != "away":
            entry.readers[reader] = entry.readers.get(reader, 0) + 1
        return entry.place

    def closed(self, id: str, reader: int) -> None:
        """A reader has closed what it opened once. Ignored if it has nothing open."""
        entry = self.entries.get(id)
        if entry is None or reader not in entry.readers:
            return
        entry.readers[reader] -= 1
        if not entry.readers[reader]:
            del entry.readers[reader]

    def reader_lost(self, reader: int) -> None:
        """A reader is gone, and has nothing open any more."""
        for entry in self.entries.values():
            entry.readers.pop(reader, None)

    def written(self, id: str) -> None:
        """An object's durable copy is there. Ignored for what was erased in the meantime."""
        entry = self.entries.get(id)
        if entry is not None:
            entry.durable, entry.failures, entry.reason = "kept", 0, ""

    def write_failed(self, id: str, reason: str, now_s: float) -> None:
        """An object's durable copy could not be made."""
        entry = self.entries.get(id)
        if entry is not None:
            entry.durable, entry.reason = "failed", reason
            entry.retry_s = now_s + min(FIRST_RETRY_S * 2**entry.failures, LONGEST_RETRY_S)
            entry.failures += 1

    def copy_lost(self, id: str) -> None:
        """A durable copy cannot be read any more. An object that is nowhere else is unknown from now on."""
        entry = self.entries.get(id)
        if entry is not None and entry.place == "away":
            self._forget(id)

    def deleted(self, id: str, now_s: float) -> list[Command]:
        """Nobody shall find the object any more. Unknown ones are ignored."""
        entry = self.entries.get(id)
        if entry is None:
            return []
        if entry.deleted_s is None:
            entry.deleted_s = now_s
        return self._erase_if_due(id, entry, now_s)

    def ticked(self, now_s: float) -> list[Command]:
        """Time has passed."""
        commands: list[Command] = []
        self._end_old_runs(now_s)
        for id, entry in list(self.entries.items()):
            if erased := self._erase_if_due(id, entry, now_s):
                commands += erased
            elif entry.durable == "failed" and entry.retry_s <= now_s:
                entry.durable = "pending"
                commands.append(Write(id))
            elif _droppable(entry) and now_s - entry.used_s >= self._warm_s:
                commands.append(self._drop(id))
        return commands

    def retried(self) -> list[Command]:
        """Failed copies shall be tried again now."""
        failed = [id for id, entry in self.entries.items() if entry.durable == "failed"]
        for id in failed:
            self.entries[id].durable = "pending"
        return [Write(id) for id in failed]

    def waits(self) -> bool:
        """Whether something is to be done soon, without any further event."""
        return any(entry.deleted_s is not None or entry.durable == "failed" for entry in self.entries.values())

    def runs_used_since(self, time_s: float) -> list[tuple[str, str]]:
        """DAG and run of everything that was put or read since then."""
        return [run for run, used_s in self._runs.items() if used_s >= time_s]

    def undurable(self) -> list[str]:
        """Objects that would be lost with this node."""
        return [id for id, entry in self.entries.items() if entry.durable != "kept" and entry.deleted_s is None]

    def check(self) -> None:
        """Verifies the invariants.

        Raises:
            InternalError: one of them is broken.
        """
        bytes_held = sum(entry.size_bytes for entry in self.entries.values() if entry.place == "memory")
        _require(self.memory_bytes == bytes_held + sum(self._reserved.values()), "bytes in memory are miscounted")
        _require(self.memory_bytes <= self.budget_bytes, "the budget is exceeded")
        for id, entry in self.entries.items():
            _require(entry.place != "away" or entry.durable == "kept", f"{id} is nowhere")
            _require(entry.place != "away" or not entry.readers, f"{id} is away but read")
            _require(min(entry.readers.values(), default=1) > 0, f"{id} has a reader that holds nothing")
            _require((entry.slot.dag_id, entry.slot.run_id) in self._runs, f"the run of {id} is unknown")
        for slot, id in self._current.items():
            _require(id in self.entries and self.entries[id].slot == slot, f"slot {slot} has a stranger")

    def _add(self, id: str, entry: Entry) -> None:
        if id in self.entries:
            raise InternalError(f"object {id} is put twice")
        self.entries[id] = entry
        self._use(entry, entry.used_s)
        if entry.place == "memory":
            self.memory_bytes += entry.size_bytes

    def _use(self, entry: Entry, now_s: float) -> None:
        entry.used_s = now_s
        self._runs[entry.slot.dag_id, entry.slot.run_id] = now_s

    def _victims(self, needed_bytes: int) -> list[str] | None:
        """What to drop so that so many bytes become free; ``None`` if there is not enough that may go."""
        held = [(e.deleted_s is None, e.used_s, id) for id, e in self.entries.items() if e.place == "memory"]
        victims = []
        for _, _, id in sorted(held):
            if needed_bytes <= 0:
                break
            if _droppable(self.entries[id]):
                victims.append(id)
                needed_bytes -= self.entries[id].size_bytes
        return victims if needed_bytes <= 0 else None

    def _drop(self, id: str) -> Command:
        entry = self.entries[id]
        if entry.place == "memory":
            self.memory_bytes -= entry.size_bytes
        entry.place = "away"
        return Drop(id)

    def _erase_if_due(self, id: str, entry: Entry, now_s: float) -> list[Command]:
        if entry.deleted_s is None or entry.readers or now_s - entry.deleted_s < self._grace_s:
            return []
        self._forget(id)
        return [Erase(id)]

    def _forget(self, id: str) -> None:
        entry = self.entries.pop(id)
        if entry.place == "memory":
            self.memory_bytes -= entry.size_bytes
        if self._current.get(entry.slot) == id:
            del self._current[entry.slot]

    def _end_old_runs(self, now_s: float) -> None:
        if not self._ttl_s:
            return
        old = {run for run, used_s in self._runs.items() if now_s - used_s >= self._ttl_s}
        if not old:
            return
        known = {id: (entry.slot.dag_id, entry.slot.run_id) for id, entry in self.entries.items()}
        read = {run for id, run in known.items() if self.entries[id].readers}
        for id, run in known.items():
            if run in old - read and self.entries[id].deleted_s is None:
                self.entries[id].deleted_s = now_s - self._grace_s
        for run in old - set(known.values()):
            del self._runs[run]


def _droppable(entry: Entry) -> bool:
    return entry.place != "away" and entry.durable == "kept" and not entry.readers


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InternalError(f"store: {message}")
