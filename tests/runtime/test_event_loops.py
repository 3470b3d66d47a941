"""Called from within a running event loop: tasks may run loops of their own, and the caller's is still there after."""

from __future__ import annotations

import asyncio
from typing import Any

import dask
import pytest

import headrace_dask
from headrace.errors import UserError
from headrace.graph import Graph
from headrace.runtime import Runtime

pytestmark = pytest.mark.shares_runtime


def run_a_loop(x: int) -> int:
    async def later() -> int:
        await asyncio.sleep(0)
        assert asyncio.current_task() is not None
        return x + 1

    return asyncio.run(later())


def graph(fn: Any, *args: Any) -> Graph:
    return Graph(["a", "b"], [(fn, args, None, ())] * 2, [()] * 2, ["f"] * 2, [0, 1])


def within_a_loop(body: Any) -> Any:
    """What ``body()`` gives in the thread of a running event loop, which must be as before afterwards."""

    async def handler() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            return body()
        finally:
            assert asyncio.get_running_loop() is loop
            assert asyncio.current_task() is task
            await asyncio.sleep(0)

    return asyncio.run(handler())


@pytest.mark.parametrize("lane", ["auto", "inline"])
def test_tasks_run_loops_of_their_own(lane: str) -> None:
    with Runtime(lane=lane, num_workers=2) as rt:
        assert within_a_loop(lambda: rt.run(graph(run_a_loop, 1))) == [2, 2]


@pytest.mark.parametrize("lane", ["auto", "inline"])
def test_tasks_of_dask_run_loops_of_their_own(lane: str) -> None:
    total = dask.delayed(sum)([dask.delayed(run_a_loop)(x) for x in range(5)])
    assert within_a_loop(lambda: total.compute(scheduler=headrace_dask.get, lane=lane)) == 15


def fail(message: str) -> None:
    run_a_loop(1)
    raise UserError(message)


@pytest.mark.parametrize("rerun", [False, True])
def test_the_loop_is_back_after_a_failure(rerun: bool) -> None:
    def body() -> None:
        with Runtime(lane="inline") as rt, pytest.raises(UserError, match="on purpose"):
            rt.run(graph(fail, "on purpose"), rerun=rerun)

    within_a_loop(body)
