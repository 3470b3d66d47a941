"""Reads a stream in an event loop, for ``async for`` and ``anext``: who waits for an item lets others run meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from headrace.stream.source import LONG_S, MOST_PATIENCE_S

if TYPE_CHECKING:
    from headrace.stream.source import Source

_END: Final = object()


class LoopBell:
    """Rings in the event loop that runs in the thread which makes it."""

    __slots__ = ("_loop", "rung")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.rung = asyncio.Event()

    def put(self, item: None, /) -> None:
        """Rings. In any thread."""
        try:
            self._loop.call_soon_threadsafe(self.rung.set)
        except RuntimeError:
            pass  # the loop is closed, and nobody waits any more


class Awaited(AsyncIterator[Any]):
    """The items of a stream from the start.

    Args:
        source: the stream.
        consumer: the task that reads, or ``NOBODY``.
        read: gives its items, and bells made by the function that it gets: see :meth:`Source.read`.
    """

    def __init__(self, source: Source, consumer: int, read: Callable[[Callable[[], LoopBell]], Iterator[Any]]) -> None:
        self._source = source
        self._consumer = consumer
        self._items = read(LoopBell)

    async def __anext__(self) -> Any:
        while True:
            item = next(self._items, _END)
            if item is _END:
                raise StopAsyncIteration
            if type(item) is not LoopBell:
                return item
            await self._wait(item)

    async def _wait(self, bell: LoopBell) -> None:
        surroundings, thread = self._source.surroundings, threading.get_ident()
        assert surroundings is not None
        me = surroundings.waiting[thread] = self._source, self._consumer
        surroundings.about_to_wait()
        patience_s = LONG_S
        try:
            while not bell.rung.is_set():
                try:
                    await asyncio.wait_for(bell.rung.wait(), patience_s)
                except asyncio.TimeoutError:
                    surroundings.waiting[thread] = me  # others of this loop have waited for other streams meanwhile
                    surroundings.waited_long(self._source)
                    patience_s = min(2.0 * patience_s, MOST_PATIENCE_S)
        finally:
            if surroundings.waiting.get(thread) is me:
                del surroundings.waiting[thread]
