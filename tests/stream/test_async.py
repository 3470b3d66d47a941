"""Streams and event loops: asynchronous generators, and ``async for`` over what any generator makes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import Any

import pytest

from headrace.config import LANES
from headrace.runtime import Runtime

TIMEOUT_S = 60.0
MANY = 2000


async def numbers(n: int) -> AsyncIterator[int]:
    for number in range(n):
        if number % 100 == 0:
            await asyncio.sleep(0)
        yield number


async def doubled(items: AsyncIterable[int]) -> AsyncIterator[int]:
    async for item in items:
        yield 2 * item


async def beside(one: AsyncIterable[int], other: Any) -> AsyncIterator[tuple[int, int]]:
    async for item in one:
        yield item, await other.__anext__()
    await other.aclose()


def total(items: AsyncIterable[int]) -> int:
    async def main() -> int:
        return sum([item async for item in items])

    return asyncio.run(main())


async def breaks(n: int) -> AsyncIterator[int]:
    async for number in numbers(n):
        yield number
    raise KeyError("broken")


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("budget_bytes", [100, 1 << 20])
def test_asynchronous_stages_read_each_other(lane: str, budget_bytes: int) -> None:
    """With the small budget the branches of the diamond wait in a circle, and late readers have it made again."""
    with Runtime(lane=lane, num_workers=2, stream_buffer_bytes=budget_bytes, check=True) as rt:
        made = rt.submit(numbers, MANY)
        twice = rt.submit(doubled, made)
        assert rt.submit(total, twice).result(TIMEOUT_S) == sum(range(0, 2 * MANY, 2))
        pairs = rt.submit(list, rt.submit(beside, made, twice))
        assert pairs.result(TIMEOUT_S) == [(number, 2 * number) for number in range(MANY)]


def test_a_failure_comes_where_it_happened(lane: str) -> None:
    async def seen(items: AsyncIterable[int]) -> list[int | str]:
        found: list[int | str] = []
        try:
            async for item in items:
                found.append(item)
        except KeyError as error:
            found.append(str(error))
        return found

    with Runtime(lane=lane, num_workers=2, check=True) as rt:
        broken = rt.submit(breaks, 3)
        assert rt.submit(lambda items: asyncio.run(seen(items)), broken).result(TIMEOUT_S) == [0, 1, 2, "'broken'"]


def test_a_loop_goes_on_while_it_waits_for_items() -> None:
    """The generator ends only when something else has run in the reader's loop."""
    go_on = threading.Event()

    def made() -> Iterator[int]:
        yield 1
        assert go_on.wait(TIMEOUT_S)
        yield 2

    async def main(stream: Any) -> list[list[int]]:
        async def read() -> list[int]:
            return [item async for item in stream]

        async def release() -> None:
            while await anext(stream) != 1:
                pass
            go_on.set()

        *found, _ = await asyncio.gather(read(), read(), release())
        return found

    with Runtime(lane="threads", num_workers=2, check=True) as rt:
        assert asyncio.run(main(rt.submit(made).result(TIMEOUT_S))) == [[1, 2], [1, 2]]


def test_a_handle_is_an_iterator_once_anext_was_called(lane: str) -> None:
    async def main(stream: Any) -> tuple[int, list[int], Any]:
        return await anext(stream), [item async for item in stream], await anext(stream, None)

    with Runtime(lane=lane, num_workers=2, check=True) as rt:
        stream = rt.submit(numbers, 4).result(TIMEOUT_S)
        assert asyncio.run(main(stream)) == (0, [1, 2, 3], None)
        assert list(stream) == [0, 1, 2, 3]


def test_a_loop_that_ends_early_holds_nobody_up() -> None:
    go_on = threading.Event()

    def made() -> Iterator[int]:
        yield 1
        assert go_on.wait(TIMEOUT_S)
        yield 2

    async def main(stream: Any) -> None:
        reading = asyncio.create_task(_exhaust(stream))
        while await anext(stream) != 1:
            pass
        await asyncio.sleep(0)
        reading.cancel()

    with Runtime(lane="threads", num_workers=2, check=True) as rt:
        stream = rt.submit(made).result(TIMEOUT_S)
        asyncio.run(main(stream))
        go_on.set()
        assert list(stream) == [1, 2]


async def _exhaust(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("lane", [lane for lane in LANES if lane != "processes"])
def test_what_a_generator_leaves_to_its_loop_is_ended(lane: str) -> None:
    """As by ``asyncio.run``; also when it is run again for a second look, from within another loop."""
    ended: list[str] = []

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("task")

    async def leaves(n: int) -> AsyncIterator[int]:
        task = asyncio.create_task(for_ever())
        await asyncio.to_thread(int)
        try:
            for number in range(n):
                yield number
        finally:
            ended.append("generator")
            assert not task.done()

    with Runtime(lane=lane, num_workers=2, stream_buffer_bytes=1000, check=True) as rt:
        stream = rt.submit(leaves, MANY).result(TIMEOUT_S)
        for _ in range(2):
            assert total(stream) == sum(range(MANY))
        assert len(stream) == MANY
    assert ended == ["generator", "task"] * (len(ended) // 2)
    assert len(ended) >= 4
