"""The shared memory of a process other than the owner: what it writes for others, and what it reads of theirs."""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from headrace.lanes.processes.parcels import Parcel, is_shared, open_shared, open_whole, segment_of, views_of, wrap
from headrace.store.pickling import Packed
from headrace.store.segments import Arena, Atlas, Reading


class Shelf:
    """Thread-safe.

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
        self.closed: deque[tuple[int, int]] = deque()
        """What is not read any more (place, offset), to be said once."""

    def wrap(self, packed: Packed, small_bytes: int) -> Parcel:
        """Makes a parcel: small ones whole, large ones in the arena."""
        return wrap(packed, small_bytes, self._place, self._open_arena)

    def open(self, parcel: Parcel) -> Any:
        """Unpickles a parcel, into private memory. What it lay in comes to stand in ``closed``, also if this raises."""
        if not is_shared(parcel):
            return open_whole(parcel)
        answer = functools.partial(self.closed.append, segment_of(parcel))
        return open_shared(parcel, views_of(parcel, self._atlas, Reading(answer)))

    def attach(self, place: int, fd: int) -> None:
        """Makes another process's arena readable; the descriptor is taken over."""
        self._atlas.attach(place, fd)

    def detach(self, place: int) -> None:
        self._atlas.detach(place)

    def free(self, offset: int) -> None:
        """Nobody reads this segment of the own arena any more: it can be written again."""
        if self._arena is not None:
            self._arena.free(offset)

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
