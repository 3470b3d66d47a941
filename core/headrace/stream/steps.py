"""Takes a producer one step further, whatever kind it is of: an iterator that can be closed."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

from headrace.event_loops import hide_event_loop

if TYPE_CHECKING:
    import asyncio


class Streamed(Iterator[Any]):
    """An iterator that a task returns to have it read as a stream: see :func:`headrace.streamed`.

    Where nobody makes a stream of it, it is the iterator that it was made of.
    """

    __slots__ = ("steps",)

    def __init__(self, iterator: Any) -> None:
        self.steps = iterator if hasattr(iterator, "__anext__") else iter(iterator)

    def __next__(self) -> Any:
        return next(self.steps)


def streamed(iterable: Any) -> Streamed:
    """What a task returns to have others read an iterator of its while it goes on; generators need no such mark.

    Args:
        iterable: or an asynchronous iterator. If it has ``close()``, that is called when nobody wants the rest.

    Raises:
        TypeError: it is neither.
    """
    return Streamed(iterable)


PRODUCERS = frozenset({GeneratorType, AsyncGeneratorType, Streamed})
"""The types of values that become streams."""


def steps_of(value: Any) -> Any:
    """An iterator over what a producer makes; if it has ``close()``, that ends it early, in the thread that stepped
    it."""
    if type(value) is Streamed:
        value = value.steps
    return _AsyncSteps(value) if hasattr(value, "__anext__") else value


def close_steps(steps: Any) -> None:
    """Ends an iterator, where that is possible."""
    close = getattr(steps, "close", None)
    if close is not None:
        close()


class _AsyncSteps(Iterator[Any]):
    """Steps an asynchronous iterator in an event loop of its own, which belongs to the thread of the first step."""

    def __init__(self, iterator: AsyncIterator[Any]) -> None:
        self._iterator = iterator
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.copy_context()

    def __next__(self) -> Any:
        if self._loop is None:
            import asyncio  # seldom needed, and half of what a small worker would import

            self._loop = asyncio.new_event_loop()
        try:
            return self._run(self._iterator.__anext__())
        except StopAsyncIteration:
            self.close()
            raise StopIteration from None
        except BaseException:
            self.close()
            raise

    def _run(self, awaitable: Any) -> Any:
        assert self._loop is not None
        show_loop = hide_event_loop()  # who reads what is made again may be at it in a loop of its own
        try:
            return self._context.run(self._loop.run_until_complete, _awaited(awaitable))
        finally:
            show_loop()

    def close(self) -> None:
        if self._loop is None:
            return
        try:
            self._run(_end(self._iterator))
        finally:
            self._loop.close()
            self._loop = None


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def _end(iterator: AsyncIterator[Any]) -> None:
    """Ends an iterator and whatever it has left to its event loop, as ``asyncio.run`` does."""
    import asyncio

    try:
        if isinstance(iterator, AsyncGenerator):
            await iterator.aclose()
    finally:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        loop = asyncio.get_running_loop()
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()
