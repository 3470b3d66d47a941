"""What is there of one stream, and who may read it: :class:`Kept`. Never waits.

Lists only grow, and are not changed once they are sealed, so that an item costs its producer an append and its readers
an index, without a lock. The lock is for what the flow decides, once a chunk. Nothing under it calls foreign code; what
destructors have to say (a handle, a reader is gone) they leave in a queue, because they run at any moment.
"""

from __future__ import annotations

import itertools
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from headrace.stream.machine import Flow

_numbers = itertools.count()


class Kept(ABC):
    """The chunks of a stream, its handles and its readers. Thread-safe.

    Args:
        name: for messages.
        budget_bytes: see :class:`headrace.stream.machine.Flow`.
    """

    def __init__(self, name: str, budget_bytes: int) -> None:
        self.name = name
        self.flow = Flow(budget_bytes)
        self.readers: dict[int, tuple[int, int]] = {}
        """Reader → for which task, in which thread. Also of those that have left."""
        self.attempt = 0
        """How often the producer has begun again. Whoever looks without the lock sees this change before the chunks."""
        self.error: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._lock = threading.Lock()
        self._tail: list[Any] = []
        self._chunks: dict[int, list[Any]] = {0: self._tail}
        self._before: list[int] = [0]  # for every chunk ever made the number of items before it
        self._handles: dict[int, int] = {}  # for which task → how many; also of no task
        self._gone: deque[tuple[bool, int]] = deque()  # (a handle?, for which task), or else which reader
        self._at_end: list[Callable[[], object]] = []
        self._stopped = False

    @abstractmethod
    def _left(self) -> None:
        """Somebody is gone, or will not come. Called in destructors."""

    # ---- what is there

    def _seal(self, size_bytes: int) -> list[Any]:
        """The tail becomes a chunk; returns the new one."""
        tail: list[Any] = []
        number = len(self._before)
        with self._lock:
            self._before.append(self._before[-1] + len(self._tail))
            self._chunks[number] = self._tail = tail
            dropped = self._drop(self.flow.produced(size_bytes))
        del dropped
        return tail

    def _begin_again(self) -> None:
        """Everything is made once more."""
        with self._lock:
            dropped = self._chunks
            self.attempt += 1
            self._tail = []
            self._before, self._chunks = [0], {0: self._tail}
            self.flow.began_again()
        del dropped

    def _close(self, error: BaseException | None, traceback: TracebackType | None, stopped: bool = False) -> bool:
        """There will be no more; whether that is new."""
        with self._lock:
            if self.flow.over:
                return False
            self.error, self._traceback = error, traceback
            self._stopped |= stopped
            self.flow.ended()
            heard, self._at_end = self._at_end, []
        for hear in heard:
            hear()
        return True

    def at_end(self, hear: Callable[[], object]) -> None:
        """Calls this once nothing more will be made, perhaps at once, in any thread."""
        with self._lock:
            if not self.flow.over:
                self._at_end.append(hear)
                return
        hear()

    @property
    def count(self) -> int:
        """How many items were made so far."""
        return self._before[-1] + len(self._tail)

    def _kept_item(self, index: int) -> list[Any]:
        """An item that was made, alone in a list; nothing if it is not kept."""
        number = bisect_right(self._before, index) - 1
        chunk, index = self._chunks.get(number), index - self._before[number]
        return [] if chunk is None or self._stopped else chunk[index : index + 1]

    def _kept_items(self) -> list[Any] | None:
        """All items, if they are made and kept."""
        with self._lock:
            if not self.flow.over or self.flow.first or self._stopped:
                return None
            return [item for number in sorted(self._chunks) for item in self._chunks[number]]

    # ---- who comes and goes

    def claim(self, consumer: int) -> Claim | None:
        """A place at the start of the stream, or None if that is gone."""
        with self._lock:
            self.flow.expected.discard(consumer)
            reader = next(_numbers)
            if self._stopped or not self.flow.began(reader):
                return None
            self.readers[reader] = consumer, threading.get_ident()
        return Claim(self, reader)

    def expect(self, tasks: tuple[int, ...]) -> None:
        """These tasks will read from the start."""
        with self._lock:
            self.flow.expected.update(tasks)

    def expect_no_more(self, tasks: tuple[int, ...]) -> None:
        """These tasks will not come after all."""
        with self._lock:
            self.flow.expected.difference_update(tasks)
        self._left()

    def expect_nobody(self) -> None:
        """No task will come any more."""
        with self._lock:
            self.flow.expected.clear()
        self._left()

    def abandon(self, consumer: int) -> None:
        """The task begins again, or has failed: whatever still refers to its readers does not read."""
        for reader, (task, _) in list(self.readers.items()):
            if task == consumer:
                self.reader_gone(reader)

    def consumer_failed(self, consumer: int) -> None:
        """Its traceback may hold its readers, and its handles as well: none of them counts."""
        self.abandon(consumer)
        for _ in range(self._handles.get(consumer, 0)):
            self.handle_gone(consumer)

    def handle_made(self, consumer: int) -> None:
        with self._lock:
            self.flow.handles += 1
            self._handles[consumer] = self._handles.get(consumer, 0) + 1

    def handle_gone(self, consumer: int) -> None:
        """Safe in destructors, as is :meth:`reader_gone`. What is said once too often does not count."""
        self._gone.append((True, consumer))
        self._left()

    def reader_gone(self, reader: int) -> None:
        self._gone.append((False, reader))
        self._left()

    def _settle(self) -> list[Any]:
        """Takes in who has left; returns what nobody needs any more, to be let go of outside of the lock."""
        dropped: list[Any] = []
        while self._gone:
            is_handle, who = self._gone.popleft()
            if is_handle:
                self._settle_handle(who)
            else:
                self.readers.pop(who, None)
                dropped += self._drop(self.flow.left(who))
        return dropped

    def _settle_handle(self, consumer: int) -> None:
        count = self._handles.pop(consumer, 0)
        if count:
            self.flow.handles -= 1
        if count > 1:
            self._handles[consumer] = count - 1

    def _drop(self, chunks: range) -> list[Any]:
        return [self._chunks.pop(number, None) for number in chunks]


class Claim:
    """A place in a stream, given up when this object is gone."""

    __slots__ = ("_kept", "reader")

    def __init__(self, kept: Kept, reader: int) -> None:
        self._kept = kept
        self.reader = reader

    def __del__(self) -> None:
        self._kept.reader_gone(self.reader)


class Remote:
    """Stands in a stream for an item that is in another process, until somebody reads it here.

    Args:
        nbytes: how many it takes.
        brings: the item itself. What this refers to is let go of with this object.
    """

    __slots__ = ("__weakref__", "brings", "nbytes")

    def __init__(self, nbytes: int, brings: Callable[[], Any]) -> None:
        self.nbytes = nbytes
        self.brings = brings


def brought(item: Any) -> Any:
    """What a reader in this process gets."""
    return item.brings() if type(item) is Remote else item
