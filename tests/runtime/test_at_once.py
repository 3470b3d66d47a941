"""Graphs of tasks that are known to be quick run in one go, unless they turn out not to be."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from headrace import testing
from headrace.graph import Graph
from headrace.runtime import Runtime
from headrace.sched import events as e
from headrace.shell import at_once


def add(*numbers: int) -> int:
    return sum(numbers)


def thread_of(seconds: float = 0.0) -> int:
    if seconds:
        time.sleep(seconds)
    return threading.get_ident()


def raiser() -> None:
    raise ValueError("no")


def diamond(**more: Any) -> Graph:
    """5, then twice 5 + 1, then their sum and that of a literal."""
    return Graph(
        ["five", "a", "b", "ten", "sum"],
        [(add, (5,), None, ()), (add, (None, 1), None, ((0, 0),)), (add, (None, 1), None, ((0, 0),)), None,
         (add, (None, None, None), None, ((0, 1), (1, 2), (2, 3)))],
        [(), (0,), (0,), (), (1, 2, 3)], ["add", "add", "add", "data", "add"], [4, 1], {3: 10}, **more,
    )  # fmt: skip


def wide(fn: Any, args: tuple[Any, ...], count: int) -> Graph:
    indices = list(range(count))
    return Graph(indices, [(fn, args, None, ())] * count, [()] * count, ["f"] * count, indices)


def events_of(rt: Runtime) -> list[type]:
    return [type(entry.event) for entry in rt._engine._machine.log]


def test_the_second_graph_goes_past_the_scheduler() -> None:
    with Runtime() as rt:
        assert [rt.run(diamond()) for _ in range(3)] == [[22, 6]] * 3
        assert events_of(rt).count(e.JobSubmitted) == 1
        assert events_of(rt).count(e.QuickTasksRan) == 2
        (stored, _) = rt.run(diamond(), keep=True)
        assert stored.result() == 22
        assert rt.run(Graph(["x"], [None], [()], ["data"], [0], {0: stored})) == [22]


def test_values_go_when_their_last_reader_has_run() -> None:
    progress = at_once.run_at_once(diamond(), 1.0, 1 << 20)
    assert progress.values == {1: 6, 3: 10, 4: 22}
    assert [(family, count) for family, count, _ in progress.ran] == [("add", 4)]


def test_what_turns_out_slow_is_spread_after_all() -> None:
    with Runtime(num_workers=2) as rt:
        rt.run(wide(thread_of, (), 50))
        threads = rt.run(wide(thread_of, (0.1,), 6))
        assert threads[0] == threading.get_ident()
        assert len(set(threads)) > 1
        kinds = events_of(rt)
        assert kinds.index(e.QuickTasksRan) < len(kinds) - 1 - kinds[::-1].index(e.JobSubmitted)
        rt.run(wide(thread_of, (), 1))
        assert events_of(rt).count(e.QuickTasksRan) == 1  # it is not taken for quick again


def test_the_rest_has_what_it_needs() -> None:
    def slow_after_first(number: int) -> int:
        if number == 1:
            time.sleep(0.1)
        return number + 1

    first, others = (slow_after_first, (0,), None, ()), range(39)
    calls = [first, *((slow_after_first, (None,), None, ((0, i),)) for i in others)]
    chain = Graph(list(range(40)), calls, [(), *((i,) for i in others)], ["f"] * 40, [39, 0])
    with Runtime(num_workers=2, check=True) as rt:
        rt.run(wide(testing.inc, (1,), 20))
        assert rt.run(chain) == [40, 1]
        assert e.JobSubmitted in events_of(rt)[2:]


def test_an_exception_reaches_the_caller_as_itself() -> None:
    with Runtime() as rt:
        rt.run(wide(testing.inc, (1,), 20))
        graph = wide(raiser, (), 2)
        with pytest.raises(ValueError, match="no") as caught:
            rt.run(graph)
        assert any(frame.name == "raiser" for frame in caught.traceback)
        assert rt.run(wide(testing.inc, (1,), 2)) == [2, 2]


def test_a_task_may_compute_itself() -> None:
    with Runtime(num_workers=1) as rt:

        def nested(number: int) -> int:
            return int(rt.run(wide(testing.inc, (number,), 1))[0]) if number else rt.submit(testing.inc, 0).result()

        rt.run(wide(testing.inc, (1,), 50))
        assert rt.run(wide(nested, (1,), 3)) == [2, 2, 2]
        assert rt.run(wide(nested, (0,), 3)) == [1, 1, 1]
