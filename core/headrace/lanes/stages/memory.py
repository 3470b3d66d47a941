"""Large items of streams in shared memory, seen from a stage process: what it makes, and what it reads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Final

from headrace.lanes.processes.parcels import Parcel, is_shared, open_parcel, wrap
from headrace.lanes.stages.frames import SMALL_BYTES, Large
from headrace.store.pickling import pack
from headrace.store.segments import Arena, Atlas

AHEAD_BYTES: Final = 64 << 20
"""So much may be on its way to the owner that it has not taken into a stream; or one item, if that is larger."""


class Memory:
    """Thread-safe, except that only one thread at a time waits for credit.

    Args:
        place: the number of this process.
        announce: called with the descriptor of the arena once there is one, before anything in it is named.
    """

    def __init__(self, place: int, announce: Callable[[int], None]) -> None:
        self._place = place
        self._announce = announce
        self._arena: Arena | None = None
        self._opening = threading.Lock()
        self._atlas = Atlas()
        self._closed: deque[tuple[int, int]] = deque()
        self._ahead_bytes = 0
        self._taken: SimpleQueue[int] = SimpleQueue()

    def put(self, item: Any, size_bytes: int) -> Large:
        """Copies an item to where others can read it.

        Raises:
            UnpicklableError: it cannot be pickled.
        """
        return Large(wrap(pack(item), SMALL_BYTES, self._place, self._open_arena), size_bytes)

    def open(self, parcel: Parcel) -> Any:
        """What somebody else has put, in private memory of this process."""
        return open_parcel(parcel, self._atlas, self._closed)

    def refuse(self, items: Iterable[Any]) -> None:
        """What has come is not going to be opened."""
        self._closed.extend(item.parcel[1:3] for item in items if _is_shared(item))

    def take_back(self, items: Iterable[Any]) -> None:
        """What was put is not going to be sent."""
        self.free(item.parcel[2] for item in items if _is_shared(item))

    def free(self, offsets: Iterable[int]) -> None:
        """Nobody reads these any more: they can be written again."""
        for offset in offsets:
            assert self._arena is not None
            self._arena.free(offset)

    def take_closed(self) -> list[tuple[int, int]]:
        """What is not read any more, to be said once."""
        return [self._closed.popleft() for _ in range(len(self._closed))]

    def say_again(self, closed: list[tuple[int, int]]) -> None:
        """What was taken could not be said."""
        self._closed.extend(closed)

    def attach(self, place: int, descriptor: int) -> None:
        self._atlas.attach(place, descriptor)

    def detach(self, place: int) -> None:
        self._atlas.detach(place)

    def trim(self) -> None:
        """Gives memory that is not in use back to the system."""
        if self._arena is not None:
            self._arena.trim()

    def _open_arena(self) -> Arena:
        with self._opening:
            if self._arena is None:
                self._arena = Arena(self._place)
                self._atlas.attach(self._place, os.dup(self._arena.fd))
                self._announce(self._arena.fd)
            return self._arena

    # ---- credit

    def wait_for_credit(self, size_bytes: int) -> None:
        """Blocks until so much more may be sent."""
        while self._ahead_bytes and self._ahead_bytes + size_bytes > AHEAD_BYTES:
            self._ahead_bytes -= self._taken.get()
        self._ahead_bytes += size_bytes

    def taken(self, size_bytes: int) -> None:
        """The owner has taken so much."""
        self._taken.put(size_bytes)

    def begin(self) -> None:
        """Nothing is on its way."""
        self._ahead_bytes, self._taken = 0, SimpleQueue()


def _is_shared(item: Any) -> bool:
    return type(item) is Large and is_shared(item.parcel)
