"""Who holds which published object, and when its memory may be used again. Pure: no I/O, no clock, no thread.

An object is published once at a place; its numbers are sent to readers; each sending is answered by one report that the
reader has closed what it mapped; and at some time the runtime releases the object, because nobody will ask for it any
more. Its memory is free when it is released *and* every sending was answered.

Rules that make an id enough to talk about an object, whose value may be lost, computed and published again:

- Place numbers are never used twice.
- Readers report per sending, not per object. Reports of an object's earlier publications cannot be told from those of
  the current one, so all of an id's memory is kept until all of its sendings are answered: late, but never too early.
- What a lost place reports, or would be sent, or has published, does not count any more.

Not thread-safe: whoever owns it serializes the calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.errors import InternalError


class Segment(NamedTuple):
    """Where a published object lies."""

    place: int
    offset: int
    length: int


Freed = list[tuple[int, int]]
"""(place, offset) of segments that nobody holds any more."""


@dataclass(slots=True)
class _Entry:
    current: Segment | None = None
    old: list[Segment] = field(default_factory=list)
    """Released publications whose readers have not all reported."""
    readers: dict[int, int] = field(default_factory=dict)
    """Reader → sendings it has not answered. No zeros."""


class Ledger:
    """The books of one runtime. Every method that can make memory free returns what may be freed now, each once."""

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._lost: set[int] = set()
        self._bytes: dict[int, int] = {}
        self.size_bytes = 0
        """Bytes of everything published and not free yet, at all places."""

    def published(self, id: int, place: int, offset: int, length: int) -> Freed:
        """An object's value is at a place from now on.

        Raises:
            InternalError: it is published already and was not released.
        """
        if place in self._lost:
            return []
        entry = self._entries.setdefault(id, _Entry())
        if entry.current is not None:
            raise InternalError(f"object {id} is published twice: {entry.current} and at place {place}")
        entry.current = Segment(place, offset, length)
        self._count(place, length)
        return []

    def sent(self, id: int, reader: int) -> Freed:
        """A reader was told where the object is; it will report once that it has closed it.

        Raises:
            InternalError: the object is not published, or was released.
        """
        if reader in self._lost:
            return []
        entry = self._entries.get(id)
        if entry is None or entry.current is None:
            raise InternalError(f"object {id} is sent to place {reader} but is not published")
        entry.readers[reader] = entry.readers.get(reader, 0) + 1
        return []

    def closed(self, id: int, reader: int) -> Freed:
        """A reader has closed what one sending had it open.

        Raises:
            InternalError: every sending to it was answered before.
        """
        if reader in self._lost:
            return []
        entry = self._entries.get(id)
        if entry is None or reader not in entry.readers:
            raise InternalError(f"object {id} is closed by place {reader}, which does not hold it")
        entry.readers[reader] -= 1
        if not entry.readers[reader]:
            del entry.readers[reader]
        return self._settle(id, entry)

    def released(self, id: int) -> Freed:
        """Nobody will ask for the object again. An id that is not published is ignored: most values never are."""
        entry = self._entries.get(id)
        if entry is None or entry.current is None:
            return []
        entry.old.append(entry.current)
        entry.current = None
        return self._settle(id, entry)

    def place_lost(self, place: int) -> Freed:
        """A process is gone, with what it had published, and holds nothing any more."""
        self._lost.add(place)
        freed: Freed = []
        for id, entry in list(self._entries.items()):
            if entry.current is not None and entry.current.place == place:
                entry.current = None
            entry.old = [segment for segment in entry.old if segment.place != place]
            entry.readers.pop(place, None)
            freed += self._settle(id, entry)
        self.size_bytes -= self._bytes.pop(place, 0)
        return freed

    def locate(self, id: int) -> Segment | None:
        """Where the object can be read; ``None`` if it is not published, or was released or lost."""
        entry = self._entries.get(id)
        return entry.current if entry is not None else None

    def readers(self, id: int) -> dict[int, int]:
        """Reader → sendings not answered yet."""
        entry = self._entries.get(id)
        return dict(entry.readers) if entry is not None else {}

    def place_bytes(self, place: int) -> int:
        """Bytes published at a place and not free yet."""
        return self._bytes.get(place, 0)

    def check(self) -> None:
        """Verifies the invariants.

        Raises:
            InternalError: one of them is broken.
        """
        totals: dict[int, int] = {}
        where: set[tuple[int, int]] = set()
        for id, entry in self._entries.items():
            segments = entry.old + ([entry.current] if entry.current is not None else [])
            for segment in segments:
                totals[segment.place] = totals.get(segment.place, 0) + segment.length
                where.add((segment.place, segment.offset))
            _require(bool(segments or entry.readers), f"object {id} is empty but kept")
            _require(bool(entry.readers) or not entry.old, f"object {id} has memory that should be free")
            _require(min(entry.readers.values(), default=1) > 0, f"object {id} has a reader that holds nothing")
            _require(not self._lost & entry.readers.keys(), f"object {id} has a lost reader")
        _require(not self._lost & totals.keys(), "something is published at a lost place")
        _require(totals == self._bytes, f"bytes by place are {self._bytes}, not {totals}")
        _require(sum(totals.values()) == self.size_bytes, f"bytes are {self.size_bytes}, not {totals}")
        count = sum(len(e.old) + (e.current is not None) for e in self._entries.values())
        _require(len(where) == count, "two objects share a segment")

    def _settle(self, id: int, entry: _Entry) -> Freed:
        if entry.readers:
            return []
        freed = [(segment.place, segment.offset) for segment in entry.old]
        for segment in entry.old:
            self._count(segment.place, -segment.length)
        entry.old = []
        if entry.current is None:
            del self._entries[id]
        return freed

    def _count(self, place: int, length: int) -> None:
        self.size_bytes += length
        total = self._bytes.get(place, 0) + length
        if total:
            self._bytes[place] = total
        else:
            del self._bytes[place]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InternalError(f"ledger: {message}")
