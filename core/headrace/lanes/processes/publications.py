"""What is in shared memory, seen from the owner: who may read it, and when its memory can be used again.

Every segment is known to the ledger under a number of its own, because a task's value may be lost, computed and
published again while readers still hold the earlier one. Segments of a dead worker stay readable: the owner keeps the
descriptor of its arena until the last of them is free.

Thread-safe. The callbacks are called with the lock held: they may only take notes.
"""

from __future__ import annotations

import functools
import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from headrace.lanes.processes.parcels import (
    Parcel,
    is_shared,
    open_shared,
    open_whole,
    segment_of,
    views_of,
    whole,
    wrap,
)
from headrace.sched.events import HERE
from headrace.store.ledger import Ledger
from headrace.store.pickling import Packed
from headrace.store.segments import Arena, Atlas, Reading

_TRIM_AFTER_TURNS: Final = 10
_MISSING: Final = object()


class _Publication(NamedTuple):
    """A value that every process can read, and the place that made it so."""

    place: int
    parcel: Parcel


class Publications:
    """Parcels of published values and the memory behind them.

    Args:
        small_bytes: what is larger goes through shared memory.
        free: called with (worker, offset): this range of the worker's arena may be used again.
        forget_place: called with a dead worker none of whose segments is in use any more.
    """

    def __init__(self, small_bytes: int, free: Callable[[int, int], None], forget_place: Callable[[int], None]) -> None:
        self._small_bytes = small_bytes
        self._free = free
        self._forget_place = forget_place
        self._lock = threading.RLock()
        self._ledger = Ledger()
        self._numbers = itertools.count()
        self._published: dict[int, _Publication] = {}
        self._segments: dict[tuple[int, int], int] = {}  # (place, offset) → its number in the ledger
        self._arena: Arena | None = None
        self._atlas = Atlas()
        self._fds: dict[int, int] = {}  # place → the descriptor of its arena
        self._dead: set[int] = set()  # workers of whose arenas something is still in use
        self._idle_turns = 0  # of :meth:`tend` in a row in which nothing of the owner's was in use
        self._is_closed = False
        # Each reading of the owner's is a reader of its own in the ledger, by a number below all places: so one that
        # Ctrl-C has kept out of the ledger is not taken for another when it is over.
        self._readers_here = itertools.count(-1, -1)
        self._read_here: deque[tuple[int, int]] = deque()  # object and reader, of readings that are over
        # What was loaded, for as long as somebody holds it: asked again, the same object is given.
        self._loaded: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()

    # --- publishing ---------------------------------------------------------------------------------------------------

    def publish_here(self, task: int, packed: Packed) -> None:
        """Puts a value of the owner's where workers can read it, once.

        Raises:
            MemoryError: there is no room.
        """
        with self._lock:
            if task not in self._published:
                self._published[task] = _Publication(HERE, self._wrap(packed))

    def published(self, task: int, place: int, parcel: Parcel, reads: bool) -> None:
        """A worker has published a value; ``reads``: it reads it from there itself."""
        with self._lock:
            number = self._register(parcel)
            if number is not None and reads:
                self._ledger.sent(number, place)
            if task in self._published:
                self._retire(parcel)  # it was published twice: a worker was slow, its task done elsewhere
            else:
                self._published[task] = _Publication(place, parcel)

    def is_published(self, task: int) -> bool:
        return task in self._published

    def lend(self, packed: Packed, reader: int) -> Parcel:
        """Makes a parcel that is sent to one reader once and belongs to no task, like the arguments of a call."""
        if packed.size_bytes <= self._small_bytes:
            return whole(packed)
        with self._lock:
            parcel = self._wrap(packed)
            self._send(parcel, reader)
            self._retire(parcel)
        return parcel

    def send(self, task: int, reader: int) -> Parcel | None:
        """The parcel of a published value, for a reader which will report that it has closed it; else ``None``."""
        with self._lock:
            if task not in self._published:
                return None
            parcel = self._published[task].parcel
            self._send(parcel, reader)
            return parcel

    def _wrap(self, packed: Packed) -> Parcel:
        parcel = wrap(packed, self._small_bytes, HERE, self._open_arena)
        self._register(parcel)
        return parcel

    def _open_arena(self) -> Arena:
        if self._arena is None:
            self._arena = Arena(HERE)
            self.attach(HERE, os.dup(self._arena.fd))
        return self._arena

    def _register(self, parcel: Parcel) -> int | None:
        if not is_shared(parcel):
            return None
        _, place, offset, length, _ = parcel
        number = self._segments[place, offset] = next(self._numbers)
        self._reclaim(self._ledger.published(number, place, offset, length))
        return number

    def _send(self, parcel: Parcel, reader: int) -> None:
        if is_shared(parcel):
            self._reclaim(self._ledger.sent(self._segments[segment_of(parcel)], reader))

    # --- reading ------------------------------------------------------------------------------------------------------

    def attach(self, place: int, fd: int) -> None:
        """The arena of a place; the descriptor is taken over."""
        with self._lock:
            self._fds[place] = fd
            self._atlas.attach(place, os.dup(fd))

    def arena_fd(self, place: int) -> int:
        """The descriptor of a place's arena, to be sent to another process; it stays ours."""
        return self._fds[place]

    def load(self, task: int) -> Any:
        """The value of a published object, in private memory of this process.

        Raises:
            KeyError: it is not published.
            BaseException: whatever its unpickling raises.
        """
        value = self._loaded.get(task, _MISSING)
        if value is not _MISSING:
            return value
        with self._lock:
            parcel = self._published[task].parcel
            views = self._begin_to_read(parcel) if is_shared(parcel) else None
        value = open_whole(parcel) if views is None else open_shared(parcel, views)
        try:
            self._loaded[task] = value
        except TypeError:
            pass  # not all types can be cached as long as somebody holds them: ints, tuples, lists
        return value

    def _begin_to_read(self, parcel: Parcel) -> list[memoryview]:
        number, reader = self._segments[segment_of(parcel)], next(self._readers_here)
        # First this: whatever Ctrl-C interrupts from now on, the end of the reading is noticed.
        reading = Reading(functools.partial(self._read_here.append, (number, reader)))
        self._reclaim(self._ledger.sent(number, reader))
        return views_of(parcel, self._atlas, reading)

    # --- letting go ---------------------------------------------------------------------------------------------------

    def closed(self, reader: int, segments: Iterable[tuple[int, int]]) -> None:
        """A reader does not map these segments any more, each once."""
        with self._lock:
            for segment in segments:
                self._reclaim(self._ledger.closed(self._segments[segment], reader))

    def tend(self) -> None:
        """Looks which of the owner's own maps are gone and what memory is idle. Called twice a second or so."""
        self._notice_read()
        idle = self._arena is not None and not self._ledger.place_bytes(HERE)
        self._idle_turns = self._idle_turns + 1 if idle else 0
        if self._idle_turns == _TRIM_AFTER_TURNS:
            self.trim()

    def trim(self) -> None:
        """Gives memory that is not in use back to the system."""
        with self._lock:
            if self._arena is not None and not self._is_closed:
                self._arena.trim()

    def _notice_read(self) -> None:
        if not self._read_here:
            return
        with self._lock:
            while self._read_here:
                number, reader = self._read_here.popleft()
                if reader in self._ledger.readers(number):  # or else it had not begun
                    self._reclaim(self._ledger.closed(number, reader))

    def release(self, tasks: Iterable[int]) -> None:
        """Nobody will ask for these values again; unpublished ones are ignored."""
        self._notice_read()
        with self._lock:
            for task in tasks:
                self._loaded.pop(task, None)
                found = self._published.pop(task, None)
                if found is not None:
                    self._retire(found.parcel)

    def release_made_by(self, place: int, tasks: Iterable[int]) -> None:
        """Like :meth:`release`, for those that this place has published."""
        with self._lock:
            published = self._published
            self.release([task for task in tasks if task in published and published[task].place == place])

    def worker_died(self, place: int) -> None:
        """It reads nothing any more; what it published stays."""
        with self._lock:
            self._dead.add(place)
            for number in list(self._segments.values()):
                for _ in range(self._ledger.readers(number).get(place, 0)):
                    self._reclaim(self._ledger.closed(number, place))
            self._bury(place)

    def _retire(self, parcel: Parcel) -> None:
        if is_shared(parcel):
            self._reclaim(self._ledger.released(self._segments[segment_of(parcel)]))

    def _reclaim(self, freed: list[tuple[int, int]]) -> None:
        for place, offset in freed:
            del self._segments[place, offset]
            if place == HERE:
                assert self._arena is not None
                self._arena.free(offset)
            elif place in self._dead:
                self._bury(place)
            else:
                self._free(place, offset)

    def _bury(self, place: int) -> None:
        """Lets go of a dead worker's memory once nothing in it is in use."""
        if not self._ledger.place_bytes(place):
            self._ledger.place_lost(place)
            self._dead.discard(place)
            self._atlas.detach(place)
            fd = self._fds.pop(place, None)
            if fd is not None:
                os.close(fd)
            self._forget_place(place)

    def status(self) -> dict[str, int]:
        """Bytes published, values, and segments."""
        return {
            "published_bytes": self._ledger.size_bytes,
            "values": len(self._published),
            "segments": len(self._segments),
        }

    def check(self) -> None:
        """Verifies the invariants (for tests)."""
        with self._lock:
            self._ledger.check()

    def forget_in_child(self) -> None:
        """In a forked child: keeps no descriptor, so no memory of the parent's. The store's own are closed already."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def close(self) -> None:
        """Lets go of everything; what is mapped in this process stays readable."""
        with self._lock:
            self._is_closed = True
            self._atlas.close()
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()
            self._published.clear()
            if self._arena is not None:
                self._arena.close()
