"""The processes lane with real workers: tasks and values. The tests play the decision core."""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import numpy as np
import pytest

from headrace import testing as t
from headrace.errors import UnpicklableError
from headrace.sched.events import TaskUnpicklable, ValuePublished, WorkerRan

MB = 1 << 20


# --- results ----------------------------------------------------------------------------------------------------------


def test_small_results_arrive_with_the_report(hosted: Any) -> None:
    with hosted() as (host, lane):
        tasks = [host.add(i, t.inc, i) for i in range(1000)]
        host.execute(lane, 1, *tasks)
        assert [host.values[i] for i in tasks] == [i + 1 for i in tasks]
        assert sorted(i for e in host.of(WorkerRan) for i in e.arrived) == tasks
        assert len(host.of(WorkerRan)) < 100  # in batches


VALUES = [
    None,
    True,
    3,
    2**200,
    1 << 70000,
    1.5,
    -0.0,
    1j,
    "é\udcff",
    "x" * 5000,
    b"\0x",
    (1, "a"),
    [1, [2]],
    {"k": {1}},
]


def test_values_come_back_with_their_type(hosted: Any) -> None:
    with hosted() as (host, lane):
        for i, value in enumerate(VALUES):
            host.add(2 * i, t.identity, value, wanted=True)
            host.add(2 * i + 1, t.identity, None, holes=((0, 2 * i),), wanted=True)
        host.execute(lane, 1, *range(2 * len(VALUES)))
        for i, value in enumerate(VALUES):
            for task in (2 * i, 2 * i + 1):
                assert host.values[task] == value
                assert type(host.values[task]) is type(value)


def test_subclasses_of_plain_types_stay_themselves(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.identity, np.float64(2.5), wanted=True)
        host.add(1, t.identity, np.int32(7), wanted=True)
        host.execute(lane, 1, 0, 1)
        assert type(host.values[0]) is np.float64
        assert type(host.values[1]) is np.int32


def test_arguments_keywords_and_holes_reach_the_function(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.identity, 10)
        host.add(1, t.identity, 11)
        host.add(2, t.collect, object, "a", "b", holes=((0, 0), (2, (0, 1, 0))), wanted=True, key={"x": [1]})
        host.execute(lane, 1, 0, 1, 2)
        assert host.values[2] == ((10, "a", [10, 11, 10]), {"key": {"x": [1]}})


def test_what_stands_at_a_hole_needs_not_be_picklable(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.identity, 1)
        host.add(1, t.add, sys._getframe(), 5, holes=((0, 0),), wanted=True)
        host.execute(lane, 1, 0, 1)
        assert host.values[1] == 6


def test_large_unwanted_results_stay_with_the_worker(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.make_array, MB)
        host.add(1, t.array_sum, None, holes=((0, 0),), wanted=True)
        host.execute(lane, 1, 0, 1)
        assert host.values == {1: MB / 8}
        assert not host.of(ValuePublished)
        assert host.span_of(0).size_bytes == MB


def test_large_wanted_results_are_published_straight_away(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.make_array, MB, wanted=True)
        lane.run(1, [0])
        lane.flush()
        host.next(ValuePublished, task=0, worker=1)
        assert host.story()[-2:] == ["WorkerRan", "ValuePublished"]
        assert host.of(WorkerRan)[0].arrived == []
        array = lane.load(0)
        assert array.sum() == MB / 8
        assert lane.load(0) is array
        array[:] = 0  # private to this process
        del array
        gc.collect()
        assert lane.load(0).sum() == MB / 8


@pytest.mark.parametrize("size", [100, 40_000, 3 * MB])
def test_published_values_reach_owner_and_other_workers(hosted: Any, size: int) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.make_bytes, size)
        host.add(1, len, None, holes=((0, 0),), wanted=True)
        host.execute(lane, 1, 0)
        lane.publish(1, 0)
        lane.flush()
        host.next(ValuePublished, task=0, worker=1)
        host.values.pop(0, None)
        host.execute(lane, 2, 1)
        assert host.values[1] == size
        assert lane.load(0) == t.make_bytes(size)
        lane.publish(1, 0)  # once more: answered, not done
        lane.flush()
        host.wait(lambda: len(host.of(ValuePublished)) == 2)


def test_large_values_of_the_owner_are_published_once_for_all_workers(hosted: Any) -> None:
    with hosted(2) as (host, lane):
        host.values[0] = np.arange(MB, dtype=np.uint8)
        for i in range(1, 9):
            host.add(i, t.array_sum, None, holes=((0, 0),), wanted=True)
            lane.run(1 + i % 2, [i])
        lane.flush()
        host.ran(*range(1, 9))
        assert {host.values[i] for i in range(1, 9)} == {float(host.values[0].sum())}
        status = lane.store_status()
        assert (status["values"], status["segments"], status["published_bytes"]) == (1, 1, MB)


def test_large_arguments_of_a_task_travel_through_memory_that_is_used_again(hosted: Any) -> None:
    with hosted() as (host, lane):
        for i in range(20):
            host.add(i, t.array_sum, np.full(MB // 8, float(i)), wanted=True)
            host.execute(lane, 1, i)
            assert host.values[i] == i * MB / 8
        t.wait_until(lambda: lane.store_status()["segments"] == 0, "closing of the arguments")
        assert lane._publications._arena.stats()["high_water_bytes"] <= 4 * MB


def test_a_task_that_writes_into_its_input_changes_its_own_copy(hosted: Any) -> None:
    with hosted(2) as (host, lane):
        host.values[0] = np.ones(MB // 8)
        for worker in (1, 2):
            host.add(worker, t.overwrite, None, holes=((0, 0),), wanted=True)
            host.execute(lane, worker, worker)
        assert host.values[1] == host.values[2] == MB / 8
        assert host.values[0].min() == 1


def test_spans_tell_time_cpu_and_transfer(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.spin, 1, 0.05)
        host.add(1, t.slow, 1, 0.05)
        host.add(2, t.inc, 1)
        host.add(3, t.array_sum, np.ones(MB))
        before = time.monotonic()
        host.execute(lane, 1, 0, 1, 2, 3)
        spin, slow, quick, large = (host.span_of(i) for i in range(4))
        assert before <= spin.start_s <= slow.start_s - spin.wall_s <= time.monotonic()
        assert 0.045 < spin.cpu_s <= spin.wall_s * 1.05
        assert 0.8 < spin.width < 1.2 or spin.wall_s > 0.07  # a busy machine
        assert slow.wall_s >= 0.05
        assert 0 <= slow.cpu_s < 0.03
        assert quick.cpu_s == -1 == quick.width
        assert large.transfer_s > 0 == spin.transfer_s


# --- what cannot travel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["argument", "function", "input"])
def test_an_unpicklable_task_is_named_and_nothing_of_it_is_sent(hosted: Any, where: str) -> None:
    bad = t.make_unpicklable()
    with hosted() as (host, lane):
        if where == "argument":
            host.add(0, t.collect, 1, bad)
        elif where == "function":
            host.add(0, bad["lock"].inner.acquire)
        else:
            host.values[9] = bad
            host.add(0, t.identity, None, holes=((0, 9),))
        host.add(1, t.inc, 1)
        lane.run(1, [0, 1])
        lane.flush()
        assert host.next(TaskUnpicklable) == TaskUnpicklable(0, 1)
        assert isinstance(host.errors[0], UnpicklableError)
        assert "Task task-0 cannot go to a worker process with that. Use lane='auto' or" in str(host.errors[0])
        assert isinstance(host.errors[0].__cause__, TypeError)
        if where == "argument":
            assert "args[1]['lock'].inner" in str(host.errors[0])
        host.ran(1)
        assert not any(s.task == 0 for e in host.of(WorkerRan) for s in e.spans)


def test_an_unpicklable_result_is_named_when_it_is_wanted_or_published(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.make_unpicklable, wanted=True)
        host.add(1, t.make_unpicklable)
        host.add(2, len, None, holes=((0, 1),), wanted=True)
        lane.run(1, [0, 1, 2])
        lane.flush()
        assert host.next(TaskUnpicklable) == TaskUnpicklable(0, 1)
        assert "['lock'].inner" in str(host.errors[0])
        assert "The result of task task-0 cannot leave a worker process with that. Use lane='auto'" in str(
            host.errors[0]
        )
        host.ran(1, 2)
        assert host.values == {2: 1}  # where it was made it can be used
        lane.publish(1, 1)
        lane.flush()
        assert host.next(TaskUnpicklable, task=1) == TaskUnpicklable(1, 1)
        assert isinstance(host.errors[1], UnpicklableError)
        assert "The result of task task-1 cannot leave" in str(host.errors[1])


def test_a_result_whose_unpickling_fails_in_the_owner_fails_its_task(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.make_unloadable, wanted=True)
        host.add(1, t.inc, 1)
        lane.run(1, [0, 1])
        lane.flush()
        host.ran(1)
        assert host.next(TaskUnpicklable) == TaskUnpicklable(0, 1)  # in lane auto it is made again in the owner
        assert isinstance(host.errors[0], t.TaskError)
        assert 0 not in host.values


def test_an_input_whose_unpickling_fails_fails_every_task_that_asks(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.values[0] = t.Unloadable()
        for i in (1, 2):
            host.add(i, t.identity, None, holes=((0, 0),))
            lane.run(1, [i])
        lane.flush()
        for i in (1, 2):
            host.next(TaskUnpicklable, task=i)
            assert isinstance(host.errors[i], t.TaskError)
