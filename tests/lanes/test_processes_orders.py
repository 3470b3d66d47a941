"""What workers are told, and when they answer: start, run, revoke, publish, drop, stop. The tests play the decision
core."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace import testing as t
from headrace.lanes.processes.parcels import segment_of
from headrace.sched.events import (
    TaskRaised,
    TasksRevoked,
    TaskUnpicklable,
    ValuePublished,
    WorkerDied,
    WorkerRan,
    WorkersIdled,
    WorkerStarted,
)

MB = 1 << 20


def held_at(host: Any, lane: Any, worker: int) -> set[int]:
    """The tasks whose values a worker holds, by what it says itself."""

    def look() -> list[int]:
        (holdings,) = [o for o in gc.get_objects() if type(o).__name__ == "Holdings"]
        return list(holdings._values)

    host.add(10**6, look, wanted=True)
    host.execute(lane, worker, 10**6)
    return set(host.values[10**6])


def test_workers_start_and_stop(hosted: Any) -> None:
    with hosted(2) as (host, lane):
        assert sorted(e.worker for e in host.of(WorkerStarted)) == [1, 2]
        host.add(0, t.slow, 1, 0.1)
        lane.run(1, [0])
        lane.stop(1)
        lane.flush()
        assert host.next(WorkerDied) == WorkerDied(1, None, expected=True)
        host.ran(0)  # it had finished its queue
        assert lane.obituary(1)[0] == "exit code 0"
        lane.stop(2, kill=True)
        assert host.next(WorkerDied, worker=2) == WorkerDied(2, None, expected=True)
        assert lane.obituary(2)[0] == "killed by SIGKILL"
        assert lane.status() == []


def test_a_worker_killed_while_it_starts_is_reported(hosted: Any) -> None:
    with hosted(0) as (host, lane):
        lane.launch([1])
        lane.flush()
        lane.stop(1, kill=True)
        assert host.next(WorkerDied) == WorkerDied(1, None, expected=True)


def test_a_worker_that_cannot_be_started_is_reported(hosted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with hosted(0) as (host, lane):
        lane.launch([1])
        lane.flush()
        assert host.next(WorkerDied) == WorkerDied(1, None)
        assert lane.obituary(1)[0].startswith("not started: ")


def test_tasks_not_started_can_be_revoked_and_run_elsewhere(hosted: Any, tmp_path: Path) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.hold, tmp_path)
        tasks = [host.add(i, t.get_pid, i) for i in range(1, 5)]
        lane.run(1, [0, *tasks])
        lane.flush()
        t.wait_for_start(tmp_path)
        lane.revoke(1, [0, 2, 3])
        lane.flush()
        assert sorted(host.next(TasksRevoked, worker=1).tasks) == [2, 3]
        host.execute(lane, 2, 2)
        lane.run(1, [3])  # and back again
        lane.flush()
        t.let_go(tmp_path)
        host.ran(0, *tasks)
        pids = {status["worker"]: status["pid"] for status in lane.status()}
        assert [host.values[i] for i in tasks] == [pids[1], pids[2], pids[1], pids[1]]


def test_publish_revoke_and_drop_are_answered_while_a_task_runs(hosted: Any, tmp_path: Path) -> None:
    with hosted() as (host, lane):
        host.add(0, t.make_bytes, MB)
        host.add(1, t.hold, tmp_path)
        host.add(2, t.inc, 1)
        host.execute(lane, 1, 0)
        lane.run(1, [1, 2])
        lane.publish(1, 0)
        lane.revoke(1, [2])
        lane.flush()
        host.next(ValuePublished, task=0)
        assert host.next(TasksRevoked).tasks == [2]
        assert len(lane.load(0)) == MB
        lane.drop(1, [0])
        lane.release([0])
        lane.flush()
        t.wait_until(lambda: lane.store_status()["segments"] == 0)
        t.let_go(tmp_path)
        host.ran(1)


def test_the_memory_of_arguments_that_nobody_opens_is_given_back(hosted: Any, tmp_path: Path) -> None:
    with hosted() as (host, lane):
        host.add(0, t.hold, tmp_path)
        host.add(1, len, t.make_bytes(MB))
        host.add(2, t.Unloadable(), t.make_bytes(MB))
        lane.run(1, [0, 1])
        lane.revoke(1, [1])
        lane.flush()
        assert host.next(TasksRevoked).tasks == [1]
        t.wait_until(lambda: lane.store_status()["segments"] == 0)
        lane.run(1, [1, 2])
        lane.flush()
        t.let_go(tmp_path)
        host.ran(1)
        host.next(TaskUnpicklable, task=2)
        t.wait_until(lambda: lane.store_status()["segments"] == 0)


def test_the_memory_of_a_function_that_nobody_opens_is_given_back(
    hosted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.lanes.processes.functions._MOST_BYTES", MB)
    with hosted() as (host, lane):
        data = t.make_bytes(2 * MB)
        host.add(0, t.hold, tmp_path)
        host.add(1, lambda: len(data))
        lane.run(1, [0, 1])
        lane.revoke(1, [1])
        lane.flush()
        assert host.next(TasksRevoked).tasks == [1]
        host.call_of = lambda task: (host.calls[task], 10)  # a later job: functions of earlier ones are forgotten
        t.let_go(tmp_path)
        for task in (12, 13):  # the worker is told with the second
            host.add(task, t.inc, 1)
            host.execute(lane, 1, task)
        t.wait_until(lambda: lane.store_status()["segments"] == 0)


def test_results_before_a_long_task_do_not_wait_for_its_end(hosted: Any, tmp_path: Path) -> None:
    with hosted() as (host, lane):
        host.add(0, t.inc, 1)
        host.add(1, t.inc, 2)
        host.add(2, t.hold, tmp_path)
        lane.run(1, [0, 1, 2])
        lane.flush()
        host.ran(0, 1)
        t.let_go(tmp_path)
        host.ran(2)


def test_dependents_of_what_failed_or_was_revoked_are_given_back(hosted: Any, tmp_path: Path) -> None:
    with hosted() as (host, lane):
        host.add(0, t.hold, tmp_path)
        host.add(1, t.fail)
        host.add(2, t.inc, 5)
        host.add(3, t.inc, None, holes=((0, 1),))
        host.add(4, t.inc, None, holes=((0, 2),))
        host.add(5, t.inc, 6)
        lane.run(1, range(6))
        lane.flush()
        t.wait_for_start(tmp_path)
        lane.revoke(1, [2])
        lane.flush()
        host.next(TasksRevoked)
        t.let_go(tmp_path)
        host.ran(0, 5)
        assert host.next(TaskRaised, task=1).place == 1
        given_back = sorted(i for e in host.of(TasksRevoked) for i in e.tasks)
        assert given_back == [2, 3, 4]


def test_a_task_whose_input_is_nowhere_is_given_back(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(1, t.inc, None, holes=((0, 0),))
        lane.run(1, [1, 77])  # 77 is not even known
        lane.flush()
        assert [i for e in host.of(TasksRevoked) for i in e.tasks] == [1, 77]


def test_dropped_values_are_gone_and_come_again_when_needed(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.inc, 1)
        host.add(1, t.inc, None, holes=((0, 0),))
        host.execute(lane, 1, 0, 1)
        lane.drop(1, [0, 1])
        lane.flush()
        assert held_at(host, lane, 1) == set()
        lane.run(1, [1])
        host.values[0] = 41
        lane.flush()
        host.wait(lambda: host.values[1] == 42)


def test_a_value_dropped_before_it_was_there_is_not_kept(hosted: Any, tmp_path: Path) -> None:
    with hosted() as (host, lane):
        host.add(0, t.hold, tmp_path)
        host.add(1, t.make_array, MB)
        lane.run(1, [0, 1])
        lane.drop(1, [0, 1])
        lane.flush()
        t.wait_for_start(tmp_path)
        t.let_go(tmp_path)
        host.ran(0, 1)
        assert held_at(host, lane, 1) == set()


def test_memory_of_released_values_is_used_again_once_nobody_reads_it(hosted: Any) -> None:
    with hosted() as (host, lane):
        for i in range(30):
            host.add(i, t.make_array, MB, wanted=True)
            host.execute(lane, 1, i)
            host.next(ValuePublished, task=i)
            array = lane.load(i)
            lane.drop(1, [i])
            lane.release([i])
            lane.flush()
            assert array.sum() == MB / 8  # released, but still read here
            del array
        t.wait_until(lambda: lane.store_status()["segments"] == 0)
        # All of them went through a few MB of the worker's arena.
        host.add(99, t.make_array, MB, wanted=True)
        host.execute(lane, 1, 99)
        host.next(ValuePublished, task=99)
        _, offset = segment_of(lane._publications._published[99].parcel)
        assert offset < 8 * MB


def test_a_copy_that_nobody_opened_is_given_back_when_its_task_runs_here_too(hosted: Any, tmp_path: Path) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.make_array, MB, wanted=True)
        host.execute(lane, 1, 0)
        host.next(ValuePublished, task=0)
        host.add(1, t.hold, tmp_path)
        host.add(2, t.array_sum, None, holes=((0, 0),))
        lane.run(2, [1, 2])
        lane.revoke(2, [2])  # so the copy that came for it stays unopened
        lane.run(2, [0])
        lane.flush()
        host.next(TasksRevoked)
        t.let_go(tmp_path)
        host.wait(lambda: len([s for e in host.of(WorkerRan) for s in e.spans if s.task == 0]) == 2)
        lane.drop(2, [0])
        lane.drop(1, [0])
        lane.release([0])
        lane.flush()
        t.wait_until(lambda: lane.store_status()["segments"] == 0)


def test_published_values_of_a_dead_worker_stay_readable(hosted: Any) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.make_array, MB, wanted=True)
        host.add(1, t.array_sum, None, holes=((0, 0),), wanted=True)
        host.execute(lane, 1, 0)
        host.next(ValuePublished, task=0)
        lane.stop(1, kill=True)
        host.next(WorkerDied)
        host.execute(lane, 2, 1)
        assert host.values[1] == MB / 8
        assert lane.load(0).sum() == MB / 8
        lane.release([0])
        lane.flush()
        gc.collect()
        t.wait_until(lambda: lane.store_status()["segments"] == 0)
        assert 1 not in lane._publications._fds


@pytest.mark.parametrize("settings", [{}, {"idle_timeout_s": 0.04}])
def test_the_clock_ticks_while_there_are_workers(hosted: Any, settings: Any) -> None:
    with hosted(1, **settings) as (host, lane):
        host.wait(lambda: len(host.of(WorkersIdled)) >= 3)
        lane.stop(1)
        lane.flush()
        host.next(WorkerDied)


def test_many_tasks_with_large_messages_do_not_block_the_caller(hosted: Any, tmp_path: Path) -> None:
    with hosted(small_bytes=1 << 20) as (host, lane):
        host.add(0, t.hold, tmp_path)
        tasks = [host.add(i, len, t.make_bytes(500_000, i), wanted=True) for i in range(1, 40)]
        lane.run(1, [0])
        lane.flush()
        for i in tasks:
            lane.run(1, [i])
            lane.flush()  # 20 MB, while the worker is busy
        t.wait_for_start(tmp_path)
        t.let_go(tmp_path)
        host.ran(*tasks)
        assert {host.values[i] for i in tasks} == {500_000}
