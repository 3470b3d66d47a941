"""Large items of streams in shared memory, seen from the owner of the stage processes.

::

    process A: arena ── Large (parcel) ──► receive: Remote, in the stream ── send_on: the parcel ──► process B: maps it
       ▲                                      │
       └── TAKEN (ranges) ◄── free_ranges ◄───┴── nobody keeps it, and whoever mapped it has closed it

A large item that one process makes and another one reads is copied once, into the arena of the former; here only
parcels pass. One that a thread of the owner makes is copied into the owner's arena for each reader elsewhere.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from typing import Any

from headrace.lanes.processes.parcels import Parcel, is_shared, open_whole
from headrace.lanes.processes.publications import Publications
from headrace.lanes.stages.frames import SMALL_BYTES, Large
from headrace.store.pickling import Packed, pack
from headrace.stream.kept import Remote


class Exchange:
    """The books of what is in shared memory. Thread-safe.

    Each process is a *place*, by a number that is never used twice.
    """

    def __init__(self) -> None:
        self._books = Publications(SMALL_BYTES, self._note_free, self._note_forgotten)
        self._places = itertools.count(1)
        self._numbers = itertools.count()
        self._free: dict[int, deque[int]] = {}
        self._forgotten: deque[int] = deque()
        self.dropped: deque[int] = deque()
        """Numbers of items that no stream has any more; added to by destructors."""

    def new_place(self) -> int:
        place = next(self._places)
        self._free[place] = deque()
        return place

    def attach(self, place: int, descriptor: int) -> None:
        """The memory of a place, from now on ours to close."""
        self._books.attach(place, descriptor)

    def descriptor(self, place: int) -> int:
        """Of a place's memory; stays ours."""
        return self._books.arena_fd(place)

    def receive(self, large: Large, place: int) -> Any:
        """What a process has made, as it stands in a stream."""
        if not is_shared(large.parcel):
            return open_whole(large.parcel)
        number = next(self._numbers)
        self._books.published(number, place, large.parcel, reads=False)
        return Remote(large.nbytes, Published(self, number))

    def bring(self, number: int) -> Any:
        """An item, in private memory of this process."""
        return self._books.load(number)

    def send_on(self, item: Any, size_bytes: int, reader: int) -> Large:
        """An item of a stream for a process, which will report that it has ceased to read it.

        Raises:
            UnpicklableError: it cannot be sent.
        """
        if type(item) is Remote:
            published = item.brings
            if isinstance(published, Published) and published.exchange is self:
                return Large(self._books.send(published.number, reader), size_bytes)
            item = item.brings()
        return Large(self.lend(pack(item), reader), size_bytes)

    def lend(self, packed: Packed, reader: int) -> Parcel:
        """Something pickled for one process."""
        return self._books.lend(packed, reader)

    def closed(self, reader: int, ranges: Iterable[tuple[int, int]]) -> None:
        """A process does not read these any more, each once."""
        self._books.closed(reader, ranges)

    def free_ranges(self, place: int) -> list[int]:
        """Where a process may write again, each once."""
        self.settle()
        free = self._free.get(place, deque())
        return [free.popleft() for _ in range(len(free))]

    def settle(self) -> None:
        """Takes in what destructors have left."""
        dropped: list[int] = []
        while self.dropped:
            try:
                dropped.append(self.dropped.popleft())
            except IndexError:
                break  # another thread was quicker
        self._books.release(dropped)

    def tend(self) -> None:
        """Gives memory back that has not been used for long. Called every second or so."""
        self.settle()
        self._books.tend()

    @property
    def in_use(self) -> bool:
        """Whether anything is in shared memory."""
        return self._books.status()["segments"] > 0

    def lost(self, place: int) -> None:
        """A process is gone; what it has made stays for as long as a stream has it."""
        self.settle()
        self._books.worker_died(place)

    def take_forgotten(self) -> list[int]:
        """The places that nobody needs to be able to read any more, each once."""
        return [self._forgotten.popleft() for _ in range(len(self._forgotten))]

    def _note_free(self, place: int, offset: int) -> None:
        self._free[place].append(offset)

    def _note_forgotten(self, place: int) -> None:
        del self._free[place]
        self._forgotten.append(place)

    def forget_in_child(self) -> None:
        """In a forked child: keeps no descriptor, so no memory of the parent's."""
        self._books.forget_in_child()

    def close(self) -> None:
        """Lets go of everything; what is mapped in this process stays readable."""
        self._books.close()


class Published:
    """Brings an item from shared memory; without it, the item is let go of."""

    __slots__ = ("exchange", "number")

    def __init__(self, exchange: Exchange, number: int) -> None:
        self.exchange = exchange
        self.number = number

    def __call__(self) -> Any:
        return self.exchange.bring(self.number)

    def __del__(self) -> None:
        self.exchange.dropped.append(self.number)
