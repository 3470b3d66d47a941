"""What tasks and callers get to see of a stream: :class:`Stream`."""

from __future__ import annotations

import itertools
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from headrace.errors import MustStayHere, StreamError
from headrace.program import spared
from headrace.store.sizes import weigh
from headrace.stream.gate import Gate
from headrace.stream.resuming import Attempt, unbroken
from headrace.stream.steps import PRODUCERS, steps_of

if TYPE_CHECKING:  # most programs have no stream
    from headrace.stream.kept import Claim
    from headrace.stream.source import Bell, Source

NOBODY: Final = -1
"""Who reads but is no task."""


class Stream(Iterator[Any]):
    """What a generator makes, while it makes it.

    ``for`` and ``iter`` see all of it, from the start, each time, in any thread; they wait for what is not there yet,
    and raise what the generator raises where it does. Once :func:`next` was called, the handle is an iterator like any
    other, and ``for`` goes on where that stands. ``async for`` and ``anext`` do the same in an event loop, which runs
    other things while they wait. ``len``, negative indices and ``pickle`` wait for the end, other indices for their
    item. Items are not copied: who changes one changes what others read.

    A stream is kept in memory up to ``stream_buffer_bytes``. Its generator is stopped when nobody can read it any more.
    """

    __slots__ = ("__weakref__", "_attempt", "_awaited", "_claim", "_consumer", "_own", "_source")

    def __init__(self, source: Source, consumer: int = NOBODY) -> None:
        """Made by the runtime. ``consumer``: the task that the handle is for; it holds a place at the start."""
        self._source = source
        self._consumer = consumer
        self._own: Iterator[Any] | None = None
        self._awaited: AsyncIterator[Any] | None = None
        self._attempt: Attempt | None = None
        self._claim: Claim | None = source.claim(consumer) if consumer != NOBODY else None
        source.handle_made(consumer)

    def __iter__(self) -> Iterator[Any]:
        return self if self._own is not None else self._read()

    def __next__(self) -> Any:
        if self._own is None:
            self._own = self._read()
        return next(self._own)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._awaited or self._await()

    def __anext__(self) -> Awaitable[Any]:
        if self._awaited is None:
            self._awaited = self._await()
        return self._awaited.__anext__()

    def _read(self, remote: bool = False, new_bell: Callable[[], Bell] | None = None) -> Iterator[Any]:
        claim, self._claim = self._claim, None
        return self._source.read(claim, self._consumer, remote, self._attempt, new_bell)

    def _await(self) -> AsyncIterator[Any]:
        from headrace.stream.awaited import Awaited

        return Awaited(self._source, self._consumer, lambda new_bell: self._read(new_bell=new_bell))

    def __bool__(self) -> bool:
        return True  # as generators are; whether there is an item may take long to say

    def __len__(self) -> int:
        self._source.enter(self._attempt)
        return self._source.wait(float("inf"), self._consumer)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self._read())[index]
        number = operator.index(index)
        self._source.enter(self._attempt)
        count = self._source.wait(number + 1 if number >= 0 else float("inf"), self._consumer)
        number = number if number >= 0 else count + number
        if not 0 <= number < count:
            raise IndexError(f"{index} is out of range: the stream has {count} items")
        return self._source.item(number)

    def expect(self, tasks: tuple[int, ...], coming: bool = True) -> None:
        """For the runtime: these tasks will get a handle of their own, or will not after all."""
        if coming:
            self._source.expect(tasks)
        else:
            self._source.expect_no_more(tasks)

    def expect_nobody(self) -> None:
        """For the runtime: whoever was to get a handle of its own has one, or will not."""
        self._source.expect_nobody()

    def for_task(self, task: int) -> Stream:
        """A handle of its own for a task that begins."""
        return Stream(self._source, task)

    def batches(self, most_bytes: int) -> Iterator[list[tuple[Any, int]]]:
        """All items from the start, in lists of what is there, each of about so many bytes at most.

        Items come with their bytes; those that are in another process stay there.
        """
        items, source, count, size = self._read(remote=True), self._source, 0, 0
        batch: list[tuple[Any, int]] = []
        try:
            for item in items:
                batch.append((item, weigh(item)))
                del item
                size += batch[-1][1]
                count += 1
                if size >= most_bytes or count >= source.count:
                    yield batch
                    batch, size = [], 0
        except GeneratorExit:
            raise
        except BaseException:
            if batch:
                yield batch
            raise
        if batch:
            yield batch

    @property
    def source(self) -> Source:
        """For the runtime."""
        return self._source

    def abandon(self) -> None:
        """For the runtime: whatever still reads for the handle's task does not count."""
        if self._consumer != NOBODY:
            self._source.abandon(self._consumer)

    def begin_again(self) -> None:
        """For the runtime: if the stream is made again, the handle's task is to begin again, too."""
        self._attempt = Attempt()

    @property
    def outdated(self) -> bool:
        """For the runtime: whether the handle's task has to begin again."""
        return self._attempt is not None and self._attempt.outdated

    def afresh(self) -> Stream:
        """For the runtime: a handle like this one was when it was made."""
        stream = Stream(self._source, self._consumer)
        if self._attempt is not None:
            stream.begin_again()
            self._attempt.claim = None  # the new handle has one of its own
        return stream

    def close(self) -> None:
        """Reads no more through this handle. The generator is stopped if nobody else does."""
        self._claim = self._own = self._awaited = None

    async def aclose(self) -> None:
        """As :meth:`close`, for who expects an asynchronous generator."""
        self.close()

    def to_reader(self, schema: Any = None) -> Any:
        """The stream as a ``pyarrow.RecordBatchReader``, of items that are record batches or tables.

        Args:
            schema: theirs; by default that of the first one, which is waited for.

        Raises:
            StreamError: the stream is empty, and no schema is given.
        """
        import pyarrow as pa

        batches: Iterator[Any] = (
            batch for item in self._read() for batch in (item.to_batches() if isinstance(item, pa.Table) else (item,))
        )
        if schema is None:
            first = next(batches, None)
            if first is None:
                raise StreamError(f"stream {self._source.name} is empty: say to_reader(schema)")
            schema, batches = first.schema, itertools.chain([first], batches)
        return pa.RecordBatchReader.from_batches(schema, batches)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.to_reader().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        source = self._source
        state = "being made" if not source.flow.over else "failed" if source.error is not None else "complete"
        return f"<Stream {source.name}: {source.count} items, {state}>"

    def __reduce__(self) -> Any:
        items: list[Any] = []
        try:
            items.extend(self._source.read(None, self._consumer, attempt=self._attempt))
        except Exception as error:
            return _revive, (self._source.name, items, error)
        return _revive, (self._source.name, items, None)

    def __del__(self) -> None:
        if hasattr(self, "_claim"):
            self._source.handle_gone(self._consumer)


STREAMS = PRODUCERS | {Stream}
"""The types of values that are streams already, or become one."""
AHEAD = STREAMS | {Gate}
"""The types of values that a task returns before it is done."""


def for_task(value: Any, task: int) -> Any:
    """An argument of a task as the task should see it: every consumer reads streams through a handle of its own."""
    if type(value) is Stream:
        return value.for_task(task)
    if type(value) is list and any(type(item) is Stream for item in value):
        return [item.for_task(task) if type(item) is Stream else item for item in value]
    return value


def afresh(value: Any) -> Any:
    """An argument of a call that begins once more."""
    if type(value) is Stream:
        return value.afresh()
    return [afresh(item) for item in value] if type(value) is list else value


def again(fn: Callable[..., Any], args: Any, kwargs: dict[str, Any] | None) -> Callable[[], Iterator[Any]]:
    """What runs a task's call once more, for those who come too late.

    It holds no handle on the streams that the task reads, or their producers would not stop as long as this one is
    kept.
    """
    kept = [_Later.of(arg) for arg in args]

    def run() -> Iterator[Any]:
        now = [arg.now() if type(arg) is _Later else arg for arg in kept]
        value = fn(*spared(fn, now), **(kwargs or {}))
        if type(value) not in STREAMS:
            raise StreamError(
                f"{fn!r} returned a stream the first time, and a {type(value).__name__} the second: it must do so each "
                "time, since its items may have to be made again"
            )
        return iter(value) if type(value) is Stream else unbroken(steps_of(value))

    return run


class _Later:
    """Stands for an argument that is a stream, or a list with streams."""

    __slots__ = ("_parts", "_single")

    def __init__(self, parts: list[Any], single: bool) -> None:
        self._parts = parts
        self._single = single

    @classmethod
    def of(cls, arg: Any) -> Any:
        if type(arg) is Stream:
            return cls([arg._source], True)
        if type(arg) is list and any(type(item) is Stream for item in arg):
            return cls([item._source if type(item) is Stream else item for item in arg], False)
        return arg

    def now(self) -> Any:
        from headrace.stream.source import Source

        parts = [Stream(part) if type(part) is Source else part for part in self._parts]
        return parts[0] if self._single else parts


def reduce_if_kept(stream: Stream) -> Any:
    """As ``__reduce__``, for Headrace's own pickling: that does not wait, but leaves a task where its streams are.

    Raises:
        MustStayHere: not all items are there.
    """
    source = stream.source
    items = source.everything()
    if items is None:
        raise MustStayHere(f"stream {source.name} is still being made, or was not kept")
    return _revive, (source.name, items, source.error)


def _revive(name: str, items: list[Any], error: BaseException | None) -> Stream:
    from headrace.stream.source import Source

    return Stream(Source.of_items(name, items, error))
