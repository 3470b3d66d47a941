"""What a worker holds: values of tasks, its own arena, and maps of the others'.

Values come in two ways: the main thread stores what it has computed, the io thread stores what the owner sends. The
latter are not unpickled before a task asks for them, so that what goes wrong there can be laid to that task.

Invariants: a segment (place, offset) that was sent here is reported in the shelf's ``closed`` exactly once, when its
map is gone or when it is dropped unread; a value that was dropped while its task was still to run is never stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

from headrace.lanes.processes.parcels import Parcel, Unopened, is_shared, segment_of
from headrace.lanes.processes.shelf import Shelf
from headrace.store.pickling import Packed, pack

_MISSING: Final = object()


class NotHereError(Exception):
    """A task needs a value that this worker does not hold: the task that makes it has failed or was taken back."""


class _Broken:
    """A value whose unpickling failed: it fails for every task that asks."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Holdings:
    """The values of one worker. Thread-safe, except that only one thread unpickles.

    Args:
        place: the worker's number.
        announce: called with the descriptor of the arena once there is one, before its first segment is named.
    """

    def __init__(self, place: int, announce: Callable[[int], None]) -> None:
        self.shelf = Shelf(place, announce)
        self._small_bytes = 0
        self._values: dict[int, Any] = {}
        self._unwanted: set[int] = set()
        self._lock = threading.Lock()

    def set_small_bytes(self, small_bytes: int) -> None:
        """What is larger goes through shared memory."""
        self._small_bytes = small_bytes

    def store(self, task: int, value: Any) -> None:
        """Keeps a result, unless it was dropped before it was there."""
        with self._lock:
            if self._unwanted and task in self._unwanted:
                self._unwanted.remove(task)
            else:
                if task in self._values:
                    self._replace(task)
                self._values[task] = value

    def receive(self, task: int, plain: bool, value: Any) -> None:
        """Keeps what the owner sent: a value, or the parcel of one."""
        with self._lock:
            self._replace(task)
            self._values[task] = value if plain else Unopened(value)

    def _replace(self, task: int) -> None:
        """A value comes again: a copy was here, and now its task has run here, for example."""
        before = self._values.get(task)
        if type(before) is Unopened:
            self.decline(before.parcel)

    def get(self, task: int) -> Any:
        """The value of a task.

        Raises:
            NotHereError: it is not here.
            BaseException: whatever its unpickling raises.
        """
        value = self._values.get(task, _MISSING)
        kind = type(value)
        if kind is Unopened:
            return self._open_value(task, value)
        if value is _MISSING:
            raise NotHereError(task)
        if kind is _Broken:
            raise value.error
        return value

    def _open_value(self, task: int, unopened: Unopened) -> Any:
        with self._lock:
            # Whoever takes it out of the dict answers for its segment.
            if self._values.get(task) is not unopened:
                raise NotHereError(task)
            self._values[task] = _MISSING
        value: Any
        try:
            value = self.open(unopened.parcel)
        except BaseException as error:  # it runs users' code, which may raise anything: the failure of whoever asks
            value = _Broken(error)
        with self._lock:
            if task in self._values:
                self._values[task] = value
        if type(value) is _Broken:
            raise value.error
        return value

    def open(self, parcel: Parcel) -> Any:
        """Unpickles a parcel. The answer to its sending is taken care of, also if this raises."""
        return self.shelf.open(parcel)

    def drop(self, tasks: Iterable[int], to_come: Callable[[int], bool]) -> None:
        """Forgets values, also of tasks that are still ``to_come``."""
        gone = []  # freed outside of the lock: finalizers are somebody else's code
        with self._lock:
            for task in tasks:
                value = self._values.pop(task, _MISSING)
                gone.append(value)
                if type(value) is Unopened:
                    self.decline(value.parcel)
                elif value is _MISSING and to_come(task):
                    self._unwanted.add(task)

    def expect_no_more(self, tasks: Iterable[int]) -> None:
        """These tasks will not run here after all."""
        with self._lock:
            self._unwanted.difference_update(tasks)

    def decline(self, parcel: Parcel | None) -> None:
        """Answers the sending of a parcel that will not be opened."""
        if is_shared(parcel):
            self.shelf.closed.append(segment_of(parcel))

    def publish(self, task: int) -> tuple[Parcel, bool]:
        """Makes a value readable for everybody.

        Returns:
            Its parcel, and whether this worker reads the value from there itself from now on (which is a sending).

        Raises:
            NotHereError: it is not here.
            UnpicklableError: it cannot be pickled.
        """
        value = self.get(task)
        packed = pack(value, "result")
        parcel = self.wrap(packed)
        return parcel, self._exchange(task, packed, parcel)

    def publish_new(self, task: int, value: Any, packed: Packed) -> tuple[Parcel, bool]:
        """Stores and publishes a result at once; see :meth:`publish`."""
        parcel = self.wrap(packed)
        self.store(task, value)
        return parcel, self._exchange(task, packed, parcel)

    def wrap(self, packed: Packed) -> Parcel:
        """Makes a parcel: small ones whole, large ones in the arena."""
        return self.shelf.wrap(packed, self._small_bytes)

    def _exchange(self, task: int, packed: Packed, parcel: Parcel) -> bool:
        """Reads a published value from shared memory from now on, if most of it is buffers: one copy less is alive."""
        if not is_shared(parcel) or packed.size_bytes > 2 * (packed.size_bytes - len(packed.data)):
            return False
        with self._lock:
            if task not in self._values:
                return False
            before = self._values[task]
            self._values[task] = Unopened(parcel)
        del before
        return True
