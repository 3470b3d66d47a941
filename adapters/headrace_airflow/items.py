"""What a generator task returns: its items, as a sequence that is made as it is read.

    generator ──▶ Gatherer ──chunks──▶ spool ──▶ StreamedItems, in a consumer that runs beside it
                                         └──────▶ StreamedItems, the task's XCom, in the store like every large value

A chunk is the pickle of some items. They are unpickled when they are asked for, each time anew; buffers (arrays, Arrow
data) stand on the chunk's memory.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol, overload

from headrace.store.pickling import pack
from headrace.store.sizes import weigh
from headrace_airflow import xcom_reducers
from headrace_airflow.spool import Chunk, Reader, Writer
from headrace_airflow.store import image
from headrace_airflow.unpickling import unpickle

_CHUNK_BYTES: Final = 1 << 18
_CHUNK_ITEMS: Final = 10_000
_GATHER_S: Final = 0.02
"""Items that come faster than this go on together; one that comes later than this after the last chunk, at once."""
_UNCHANGING: Final = frozenset({int, float, complex, bool, str, bytes, type(None)})


class _Chunks(Protocol):
    def chunk(self, number: int) -> Chunk | None: ...

    def items_so_far(self) -> int: ...


class StreamedItems(Sequence[Any]):
    """The items that a task has yielded: like a list that is not changed, equal to a list of the same items.

    While the task that yields still runs, iterating waits for the next item, and what needs all of them (``len``, a
    negative index, a comparison, pickling) for the last one; should that task die first, both raise
    ``BrokenStreamError``. Iterating again begins again. Not thread-safe.

    Args:
        id: of the stream; two streams of equal items have different ones.
        chunks: where its items are.
    """

    __hash__ = None  # type: ignore[assignment]  # it equals a list, which has none; typeshed declares a method

    def __init__(self, id: str, chunks: _Chunks) -> None:
        self.id = id
        self._chunks = chunks

    @property
    def spool(self) -> int | None:
        """The descriptor of the spool that they are in; ``None``: they are in the store."""
        return self._chunks.fd if isinstance(self._chunks, Reader) else None

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._all():
            yield from _items(chunk)

    def __len__(self) -> int:
        return sum(chunk.count for chunk in self._all())

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return list(self)[index]
        position = index if index >= 0 else index + len(self)
        if position >= 0:
            for chunk in self._all():
                if position < chunk.count:
                    return _items(chunk)[position]
                position -= chunk.count
        raise IndexError(f"there is no item {index}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (StreamedItems, list)):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{self._chunks.items_so_far()} streamed items>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        chunks = list(self._all())
        images = [pickle.PickleBuffer(chunk.image) if protocol >= 5 else bytes(chunk.image) for chunk in chunks]
        return _restore, (self.id, [chunk.count for chunk in chunks], images)

    def _all(self) -> Iterator[Chunk]:
        number = 0
        while (chunk := self._chunks.chunk(number)) is not None:
            yield chunk
            number += 1


class _Stored:
    """Chunks that are all there."""

    def __init__(self, chunks: list[Chunk]) -> None:
        self._all = chunks

    def chunk(self, number: int) -> Chunk | None:
        return self._all[number] if number < len(self._all) else None

    def items_so_far(self) -> int:
        return sum(chunk.count for chunk in self._all)


def in_spool(id: str, fd: int) -> StreamedItems:
    """The items of a stream that has ended."""
    return StreamedItems(id, Reader(fd))


def _restore(id: str, counts: list[int], images: list[Any]) -> StreamedItems:
    chunks = [Chunk(count, memoryview(piece)) for count, piece in zip(counts, images, strict=True)]
    return StreamedItems(id, _Stored(chunks))


def _items(chunk: Chunk) -> list[Any]:
    found: list[Any] = unpickle(image.split(chunk.image))
    return found


class Gatherer:
    """Takes the items of a generator and writes them in chunks: each at once, as long as they do not come faster.

    Only what nobody can change waits for others, and not for long: a thread writes it if no more comes. All methods are
    for the thread that runs the generator.
    """

    def __init__(self) -> None:
        xcom_reducers.register()
        self.stream = Writer()
        self.count = 0
        self._waiting: list[Any] = []
        self._waiting_bytes = 0
        self._written_at = float("-inf")
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._ended = False
        self._error: BaseException | None = None

    def add(self, item: Any) -> bool:
        """Takes an item; whether a chunk was written.

        Raises:
            UnpicklableError: it, or one before it that waited, cannot be pickled.
            OSError: there is no memory left.
        """
        with self._changed:
            self._raise()
            self.count += 1
            self._waiting.append(item)
            self._waiting_bytes += weigh(item)
            full = self._waiting_bytes >= _CHUNK_BYTES or len(self._waiting) >= _CHUNK_ITEMS
            if full or type(item) not in _UNCHANGING or time.monotonic() - self._written_at >= _GATHER_S:
                self._write()
                return True
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_late, name="headrace-items", daemon=True)
                self._writer.start()
            elif len(self._waiting) == 1:
                self._changed.notify()
            return False

    def end(self) -> StreamedItems:
        """Everything, when nothing more comes. Raises what ``add`` does."""
        with self._changed:
            self._raise()
            if self._waiting:
                self._write()
        self.close()
        self.stream.end()
        return in_spool(self.stream.id, self.stream.fd)

    def close(self) -> None:
        """Ends the thread."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._writer is not None:
            self._writer.join()

    def _write_late(self) -> None:
        with self._changed:
            while not self._ended:
                left_s = self._written_at + _GATHER_S - time.monotonic()
                if not self._waiting:
                    self._changed.wait()
                elif left_s > 0:
                    self._changed.wait(left_s)
                else:
                    try:
                        self._write()
                    except BaseException as error:  # the generator's thread raises it
                        self._error = error
                        return

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        first = self.count - len(self._waiting)
        packed = pack(self._waiting, f"items {first} to {self.count - 1}")
        self.stream.append([memoryview(packed.data), *packed.buffers], len(self._waiting))
        self._waiting.clear()
        self._waiting_bytes = 0
        self._written_at = time.monotonic()
