"""A batch that is stuck in one task: the rest of it goes elsewhere, and nothing of it gets lost on the way."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from headrace import testing
from headrace.config import LANES, Settings
from headrace.graph import Graph
from headrace.runtime import Runtime
from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.shell.jobs import Job, Jobs
from headrace.shell.threads import SlotThreads


def independent(fn: Any, *args: Any, count: int) -> Graph:
    indices = list(range(count))
    return Graph(indices, [(fn, args, None, ())] * count, [()] * count, ["f"] * count, indices)


def test_the_end_of_a_batch_is_not_told_before_what_was_taken_from_it() -> None:
    told: list[type] = []
    stalled, ended = threading.Event(), threading.Event()

    def post(*events: e.Event, slot: int | None = None) -> None:
        for event in events:
            if isinstance(event, e.SlotStalled):
                assert len(event.returned) == 2
                stalled.set()  # now the task returns, and its slot has nothing left to do
                ended.wait(0.3)  # for whom it would have to wait if this thread were slow
            else:
                ended.set()
            told.append(type(event))

    jobs = Jobs("inline", lambda task: None)
    job = Job.of_graph(independent(stalled.wait, 20, count=3), "inline", None, lambda task: None)
    jobs.add(job)
    threads = SlotThreads(
        jobs, post, lambda slot: True, Settings(), lambda task: ([], None), lambda job: [], lambda error: None
    )
    batch = c.RunHere(-1, job.number, [job.base, job.base + 1, job.base + 2], 1.0, patience_s=0.002, measured=True)
    after: list[Any] = []
    threads.get_ready(batch, after)
    (start,) = after
    start()
    threads.run(batch)
    threads.stop_watching()
    assert told == [e.SlotStalled, e.SlotRan]


@pytest.mark.parametrize("lane", LANES)
def test_many_callers_whose_batches_stall(lane: str) -> None:
    results: list[Any] = []
    with Runtime(lane=lane, num_workers=2, check=True) as rt:
        graph = independent(testing.slow, 1, 0.005, count=5)
        callers = [threading.Thread(target=lambda: results.append(rt.run(graph))) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert results == [[1] * 5] * 8


@pytest.mark.parametrize("lane", ["auto", "inline", "threads"])
def test_what_has_run_before_a_long_task_is_there_at_once(lane: str) -> None:
    gate = threading.Event()
    with Runtime(lane=lane, num_workers=2, check=True) as rt:
        rt.submit(gate.wait, 0).result()  # it is known for a quick one
        first, second, long = [rt.submit(gate.wait, seconds) for seconds in (0, 0, 60)]
        assert (first.result(timeout=30), second.result(timeout=30), long.done()) == (False, False, False)
        gate.set()
        assert long.result(timeout=30)
