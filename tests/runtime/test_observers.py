"""When an observer is told of a task: as it begins, as it ends, and meanwhile of others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from headrace import testing
from headrace.graph import Graph
from headrace.runtime import Runtime
from headrace.shell import jobs

DEADLINE_S = 10.0


class Recorder:
    """Writes down what it hears; the tasks of a test may write into the same list."""

    needs_values = True

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.values: list[Any] = []

    def started(self, index: int) -> None:
        self.events.append(("started", index))

    def finished(self, index: int, value: Any, worker: str) -> None:
        self.events.append(("finished", index))
        self.values.append(value)


def tasks(fn: Callable[..., Any], count: int) -> Graph:
    """Independent ones, each called with its index."""
    indices = list(range(count))
    return Graph(indices, [(fn, (index,), None, ()) for index in indices], [()] * count, [fn.__name__] * count, indices)


def first_times(events: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """A task may be said to begin again: on a busy machine its batch may stall just before."""
    return list(dict.fromkeys(events))


@pytest.mark.parametrize("lane", ["auto", "inline", "threads"])
def test_a_task_begins_after_that_was_told(lane: str) -> None:
    recorder = Recorder()

    def work(index: int) -> int:
        recorder.events.append(("running", index))
        time.sleep(0.001)  # so that it is no quick one
        return index

    with Runtime(lane=lane, num_workers=1) as rt:
        for _ in range(2):  # as a task that nothing is known of, and as one that is not quick
            recorder.events.clear()
            assert rt.run(tasks(work, 5), observer=recorder) == list(range(5))
            assert first_times(recorder.events) == [
                (event, i) for i in range(5) for event in ("started", "running", "finished")
            ]


def test_quick_tasks_are_told_from_left_to_right() -> None:
    recorder = Recorder()
    with Runtime(num_workers=1) as rt:
        for _ in range(2):
            recorder.events.clear()
            rt.run(tasks(testing.inc, 1000), observer=recorder)
            assert first_times(recorder.events) == [
                (event, i) for i in range(1000) for event in ("started", "finished")
            ]


def test_the_end_of_a_task_is_told_while_a_slow_one_runs() -> None:
    told = threading.Event()

    class Observer(Recorder):
        def finished(self, index: int, value: Any, worker: str) -> None:
            if index == 1:
                told.set()

    def wait_for_the_other(index: int) -> bool:
        return index == 1 or told.wait(DEADLINE_S)

    with Runtime(num_workers=2) as rt:
        assert rt.run(tasks(wait_for_the_other, 2), observer=Observer()) == [True, True]


def test_nobody_waits_for_a_caller_that_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "HEARD_WITHIN_S", 2 * DEADLINE_S)
    job = jobs.Job("auto", lambda task: None)
    job.listens = True
    waiting = threading.Thread(target=job.let_listen, daemon=True)
    waiting.start()
    item = job.mailbox.get()  # it waits now, or is about to
    job.mailbox.put(item)
    job.stop_listening()
    waiting.join(DEADLINE_S)
    assert not waiting.is_alive()
    job.let_listen()
    assert job.mailbox.empty()


def test_an_observer_may_wait_for_a_task() -> None:
    with Runtime(lane="threads", num_workers=1) as rt:

        class Asking(Recorder):
            def started(self, index: int) -> None:
                self.values.append(rt.submit(testing.inc, 1).result(DEADLINE_S))

        asking = Asking()
        assert rt.run(tasks(testing.inc, 1), observer=asking) == [1]
        assert asking.values == [2, 1]


@pytest.mark.parametrize("size", [10, 1 << 20])
def test_values_of_other_processes_are_shown(size: int) -> None:
    """Large ones come by way of shared memory, after it was said that their task has run."""
    recorder = Recorder()
    make, measure = (bytearray, (size,), None, ()), (len, (None,), None, ((0, 0),))
    graph = Graph(["make", "len"], [make, measure], [(), (0,)], ["make", "len"], [1])
    with Runtime(lane="processes", num_workers=2) as rt:
        for _ in range(2):
            assert rt.run(graph, observer=recorder) == [size]
    assert recorder.values == [bytearray(size), size] * 2
    assert sorted(recorder.events) == sorted([("started", 0), ("started", 1), ("finished", 0), ("finished", 1)] * 2)
