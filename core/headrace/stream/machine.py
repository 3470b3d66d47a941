"""The credits of one stream: what is kept, who holds it up, and whether the producer may go on. Pure.

A stream is a row of *chunks*, numbered from 0. Its *readers* are each at one chunk; a task that is *expected* has not
begun, and will read from the start. A *handle* is somebody who may read, or may not.

Rules:

1. Chunks stay as long as no more than the budget is held. Beyond it those go that all readers are past.
2. Expected readers count as standing at the start, as long as that is there. One that comes later begins with a replay.
3. The producer is *paused* while as much as the budget is still to be read by the slowest reader.
4. If nobody reads or is expected, whoever has a handle may begin at any time: nothing goes, and the budget holds.
5. With no reader, nobody expected and no handle, the stream is *unwanted*: the producer stops.
6. If the producer begins again, there is nothing yet, and all readers are at the start.
"""

from __future__ import annotations

from collections import deque


class Flow:
    """The state of one stream. Not thread-safe.

    Args:
        budget_bytes: see the rules; at least 1.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.first = 0
        """The oldest chunk that is kept."""
        self.made_bytes = 0
        self.readers: dict[int, int] = {}
        """Reader → the chunk it is at."""
        self.expected: set[int] = set()
        self.handles = 0
        self.hurry = 0
        """How many wait for the end: until it has come everything is kept, and the producer is not paused."""
        self.over = False
        self._starts: deque[int] = deque()  # for each kept chunk the bytes made before it

    @property
    def next(self) -> int:
        """The number of the next chunk."""
        return self.first + len(self._starts)

    @property
    def held_bytes(self) -> int:
        """Of all chunks that are kept."""
        return self.made_bytes - self._starts[0] if self._starts else 0

    @property
    def complete(self) -> bool:
        """Whether everything is there, and will be."""
        return self.over and self.first == 0 and self.held_bytes <= self.budget_bytes

    @property
    def paused(self) -> bool:
        """Whether the producer has to wait for readers."""
        return not self.over and not self.hurry and self.unread_bytes >= self.budget_bytes

    @property
    def unread_bytes(self) -> int:
        """What the slowest reader has not come to yet."""
        slowest = self._slowest()
        return self.made_bytes - self._starts[slowest - self.first] if slowest < self.next else 0

    @property
    def unwanted(self) -> bool:
        """Whether nobody reads, or ever will."""
        return not (self.readers or self.expected or self.handles)

    def produced(self, size_bytes: int) -> range:
        """A chunk of this size was made; returns the chunks that go."""
        self._starts.append(self.made_bytes)
        self.made_bytes += size_bytes
        return self._trim()

    def ended(self) -> None:
        """There will be no more chunks."""
        self.over = True

    def began_again(self) -> None:
        """Everything is made once more; what was made does not count."""
        self.first = self.made_bytes = 0
        self._starts.clear()
        self.readers = dict.fromkeys(self.readers, 0)

    def began(self, reader: int) -> bool:
        """A reader begins; whether it finds the stream's start. If not, it does not count: it reads a replay."""
        if self.first:
            return False
        self.readers[reader] = 0
        return True

    def advanced(self, reader: int, chunk: int) -> range:
        """A reader has come to a chunk and will not look at those before it; returns the chunks that go."""
        if reader not in self.readers:
            return _NONE
        self.readers[reader] = chunk
        return self._trim()

    def left(self, reader: int) -> range:
        """A reader reads no more; returns the chunks that go."""
        self.readers.pop(reader, None)
        return self._trim()

    def holders(self) -> tuple[list[int], list[int]]:
        """While it is paused: the readers that must go on, and the expected ones that must begin, all of them."""
        if not self.paused:
            return [], []
        slow = [reader for reader, chunk in self.readers.items() if self._unread(chunk) >= self.budget_bytes]
        return slow, list(self.expected) if self.first == 0 else []

    def grow(self) -> None:
        """Lets the producer go on though nobody has read more: what is not read yet fits the budget from now on."""
        self.budget_bytes = max(2 * self.budget_bytes, self.unread_bytes + 1)

    def _unread(self, chunk: int) -> int:
        return self.made_bytes - self._starts[max(chunk - self.first, 0)] if chunk < self.next else 0

    def _slowest(self) -> int:
        if self.expected and self.first == 0:
            return 0
        return min(self.readers.values()) if self.readers else self.first

    def _trim(self) -> range:
        starts, first = self._starts, self.first
        slowest = self._slowest()
        if self.hurry or slowest == first:
            return _NONE
        goes = first
        while goes < slowest and self.made_bytes - starts[0] > self.budget_bytes:
            starts.popleft()
            goes += 1
        self.first = goes
        return range(first, goes)


_NONE = range(0)
