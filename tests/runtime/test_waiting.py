"""Tasks that wait for futures: whatever they wait for runs, however many of them there are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
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


def _first_of(futures: list[Any]) -> set[Any]:
    return concurrent.futures.wait(futures, TIMEOUT_S, concurrent.futures.FIRST_COMPLETED).done


MANY: dict[str, Callable[[list[Any]], set[Any]]] = {
    "wait": lambda futures: concurrent.futures.wait(futures, TIMEOUT_S).done,
    "first": _first_of,
    "as_completed": lambda futures: set(concurrent.futures.as_completed(futures, TIMEOUT_S)),
}


@pytest.mark.parametrize("way", MANY)
@pytest.mark.parametrize("count", [1, 3])
def test_what_ran_before_in_the_same_batch_is_found_done(way: str, count: int) -> None:
    submitted = threading.Event()
    with Runtime(lane="threads", num_workers=1, check=True) as rt:
        rt.submit(submitted.wait, TIMEOUT_S)
        quick = [rt.submit(testing.inc, number) for number in range(count)]
        waiting = rt.submit(lambda: MANY[way](quick) == set(quick))
        submitted.set()
        assert waiting.result(TIMEOUT_S)


@pytest.mark.parametrize("way", MANY)
def test_two_tasks_wait_for_what_the_other_s_thread_ran(way: str) -> None:
    submitted, both = threading.Event(), threading.Barrier(2)

    def wait_for(futures: list[Any]) -> bool:
        both.wait(TIMEOUT_S)
        return MANY[way](futures) <= set(futures)

    with Runtime(lane="threads", num_workers=2, check=True) as rt:
        for _ in range(20):
            submitted.clear()
            for _ in range(2):
                rt.submit(submitted.wait, TIMEOUT_S)
            one, other = ([rt.submit(testing.inc, number) for number in range(4)] for _ in range(2))
            waiting = [rt.submit(functools.partial(wait_for, futures)) for futures in (other, one)]
            submitted.set()
            assert all(future.result(TIMEOUT_S) for future in waiting)


@pytest.mark.parametrize("way", MANY)
def test_no_future_is_held_when_others_are_resolved(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or two threads could each hold what the other is about to resolve."""
    held: list[bool] = []
    with Runtime(lane="threads", num_workers=1, check=True) as rt:
        about_to_wait = rt._engine._futures.about_to_wait

        def look() -> None:
            held.append(any(future._condition._is_owned() for future in futures))
            about_to_wait()

        monkeypatch.setattr(rt._engine._futures, "about_to_wait", look)
        futures: list[Any] = [rt.submit(testing.inc, number) for number in range(3)]
        MANY[way](futures)
    assert held[0] is False


@pytest.mark.parametrize("way", MANY)
@pytest.mark.parametrize("lane", HERE)
def test_tasks_wait_for_quick_ones_of_their_own(lane: str, way: str) -> None:
    with Runtime(lane=lane, num_workers=2, check=True) as rt:

        def parent(number: int) -> set[int]:
            futures = [rt.submit(testing.inc, number + child) for child in range(5)]
            assert MANY[way](futures) <= set(futures)
            return {future.result(TIMEOUT_S) - number for future in futures}

        futures = [rt.submit(parent, number) for number in range(20)]
        assert all(future.result(TIMEOUT_S) == {1, 2, 3, 4, 5} for future in futures)


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
