"""Tasks that wait for futures: whatever they wait for runs, however many of them there are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest

from headrace import testing
from headrace.config import LANES
from headrace.graph import Graph
from headrace.runtime import Runtime

TIMEOUT_S = 30.0
HERE = [lane for lane in LANES if lane != "processes"]  # a Runtime does not travel to another process


async def _awaited(future: Any) -> Any:
    return await asyncio.wrap_future(future)


def _by_wait(future: Any) -> Any:
    done, _ = concurrent.futures.wait([future])
    return done.pop().result()


WAYS: dict[str, Callable[[Any], Any]] = {
    "result": lambda future: future.result(),
    "exception": lambda future: future.exception() or future.result(),
    "wait": _by_wait,
    "as_completed": lambda future: next(concurrent.futures.as_completed([future])).result(),
    "asyncio": lambda future: asyncio.run(_awaited(future)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lane", HERE)
def test_more_tasks_wait_than_there_are_slots(lane: str, way: str) -> None:
    with Runtime(lane=lane, num_workers=2, check=True) as rt:

        def parent(number: int) -> Any:
            return WAYS[way](rt.submit(testing.inc, number))

        futures = [rt.submit(parent, number) for number in range(8)]
        assert [future.result(TIMEOUT_S) for future in futures] == list(range(1, 9))


@pytest.mark.parametrize("lane", HERE)
def test_a_recursion(lane: str) -> None:
    with Runtime(lane=lane, num_workers=2, check=True) as rt:

        def fibonacci(n: int) -> int:
            if n < 2:
                return n
            one, two = rt.submit(fibonacci, n - 1), rt.submit(fibonacci, n - 2)
            return int(one.result() + two.result())

        assert rt.submit(fibonacci, 9).result(TIMEOUT_S) == 34


@pytest.mark.parametrize("lane", HERE)
def test_a_graph_inside_a_task_waits_for_a_future(lane: str) -> None:
    with Runtime(lane=lane, num_workers=2, check=True) as rt:

        def leaf(number: int) -> Any:
            return rt.submit(testing.inc, number).result()

        def parent(number: int) -> Any:
            return rt.run(Graph(["x"], [(leaf, (number,), None, ())], [()], ["leaf"], [0]))[0]

        futures = [rt.submit(parent, number) for number in range(6)]
        assert [future.result(TIMEOUT_S) for future in futures] == list(range(1, 7))


@pytest.mark.parametrize("lane", HERE)
def test_a_graph_whose_every_task_waits_for_a_future(lane: str) -> None:
    with Runtime(lane=lane, num_workers=2, check=True) as rt:

        def leaf(number: int) -> Any:
            return rt.submit(testing.slow, number, 0.002).result()

        indices = list(range(20))
        graph = Graph(indices, [(leaf, (i,), None, ()) for i in indices], [()] * 20, ["leaf"] * 20, indices)
        assert rt.run(graph) == indices


def test_a_future_that_is_submitted_later_elsewhere() -> None:
    with Runtime(lane="threads", num_workers=2, check=True) as rt:
        there = threading.Event()
        late: list[Any] = []

        def waits() -> Any:
            there.wait()
            return late[0].result()

        futures = [rt.submit(waits) for _ in range(2)]
        late.append(rt.submit(testing.inc, 1))
        there.set()
        assert [future.result(TIMEOUT_S) for future in futures] == [2, 2]


def test_slots_are_as_many_as_before_and_their_threads_end() -> None:
    with Runtime(lane="threads", num_workers=2, check=True) as rt:
        for _ in range(20):
            assert rt.submit(lambda: rt.submit(testing.inc, 1).result()).result(TIMEOUT_S) == 2
        assert len(rt.status()["slots"]) == 2
        names = [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace-")]
        assert len([name for name in names if name.split("-")[1].isdigit()]) <= 3
