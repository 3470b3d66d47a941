"""Large items of streams in shared memory, seen from a stage process: what it makes, and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, Final

from headrace.lanes.processes.parcels import is_shared
from headrace.lanes.processes.shelf import Shelf
from headrace.lanes.stages.frames import SMALL_BYTES, Large
from headrace.store.pickling import pack

AHEAD_BYTES: Final = 64 << 20
"""So much may be on its way to the owner that it has not taken into a stream; or one item, if that is larger."""


class Memory(Shelf):
    """Thread-safe, except that only one thread at a time waits for credit."""

    def __init__(self, place: int, announce: Callable[[int], None]) -> None:
        super().__init__(place, announce)
        self._ahead_bytes = 0
        self._taken: SimpleQueue[int] = SimpleQueue()

    def put(self, item: Any, size_bytes: int) -> Large:
        """Copies an item to where others can read it.

        Raises:
            UnpicklableError: it cannot be pickled.
        """
        return Large(self.wrap(pack(item), SMALL_BYTES), size_bytes)

    def refuse(self, items: Iterable[Any]) -> None:
        """What has come is not going to be opened."""
        self.closed.extend(item.parcel[1:3] for item in items if _is_shared(item))

    def take_back(self, items: Iterable[Any]) -> None:
        """What was put is not going to be sent."""
        self.free_all(item.parcel[2] for item in items if _is_shared(item))

    def free_all(self, offsets: Iterable[int]) -> None:
        for offset in offsets:
            self.free(offset)

    def take_closed(self) -> list[tuple[int, int]]:
        """What is not read any more, to be said once."""
        return [self.closed.popleft() for _ in range(len(self.closed))]

    def say_again(self, closed: list[tuple[int, int]]) -> None:
        """What was taken could not be said."""
        self.closed.extend(closed)

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
