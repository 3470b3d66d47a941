"""Worker processes, one event at a time: exactly these commands follow."""

from __future__ import annotations

import pytest
from driver import Driver, ran, ran_away

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.away import LONG_S
from headrace.sched.policy import FREE, HOLDS, QUICK


def test_lane_processes_launches_as_many_as_there_is_work_for() -> None:
    d = Driver(cores=4)
    d.know("f", FREE, 0.003)
    assert d.submit([()] * 3, "processes", outputs=range(3), limit=4) == [c.Launch((1, 2, 3))]
    assert d(e.WorkerStarted(2)) == [c.RunAt(2, [100]), c.RunAt(2, [101]), c.RunAt(2, [102])]
    assert d(e.WorkerStarted(1)) == [c.Revoke(2, [102])]
    assert d(e.TasksRevoked(2, [102])) == [c.RunAt(1, [102])]
    assert d(ran_away(2, 100, 101)) == []
    assert d(ran_away(1, 102)) == [c.FinishJob(1)]


@pytest.mark.parametrize("wall_s", [None, LONG_S])
def test_nothing_is_queued_behind_a_long_or_an_unknown_task(wall_s: float | None) -> None:
    d = Driver()
    if wall_s is not None:
        d.know("f", FREE, wall_s)
    d.submit([()] * 4, "processes", outputs=range(4))
    assert d(e.WorkerStarted(1)) == [c.RunAt(1, [100])]
    assert d(e.WorkerStarted(2)) == [c.RunAt(2, [101])]


def test_a_chain_goes_to_one_worker_at_once() -> None:
    d = Driver("processes")
    d.start_workers(2)
    d.know("f", QUICK, 1e-6)
    chain = [(), *((i,) for i in range(49))]
    assert d.submit(chain, "processes") == [c.RunAt(1, list(range(100, 150)))]


def test_values_stay_until_somebody_else_needs_them() -> None:
    d = Driver()
    d.start_workers(2)
    # 100 and 101 are made at different workers; 102 needs both.
    assert d.submit([(), (), (0, 1)], "processes") == [c.RunAt(1, [100]), c.RunAt(2, [101])]
    assert d(ran_away(1, 100, arrived=False)) == []
    assert d(ran_away(2, 101, arrived=False)) == [c.Publish(2, 101)]
    assert d(e.ValuePublished(101, 2)) == [c.RunAt(1, [102])]
    assert d(ran_away(1, 102)) == [c.Release([100], (1,)), c.Release([101], (1, 2)), c.FinishJob(1)]


def test_what_needs_a_value_from_elsewhere_is_not_taken_along() -> None:
    d = Driver()
    d.start_workers(2)
    assert d.submit([(), (), (1,), (0, 2)], "processes") == [c.RunAt(1, [100]), c.RunAt(2, [101])]
    assert d(ran_away(1, 100, arrived=False)) == []
    assert d(ran_away(2, 101, arrived=False)) == [c.RunAt(2, [102])]
    assert d(ran_away(2, 102, arrived=False)) == [c.Release([101], (2,)), c.Publish(2, 102)]


def test_a_large_output_finishes_the_job_once_it_is_published() -> None:
    d = Driver()
    d.start_workers(1)
    d.submit([()], "processes")
    assert d(ran_away(1, 100, arrived=False)) == []
    assert d(e.ValuePublished(100, 1)) == [c.FinishJob(1)]  # the shell releases outputs when they have been taken


def test_a_worker_that_ran_dry_gets_half_of_what_another_has() -> None:
    d = Driver()
    d.know("f", FREE, 0.003)
    d.submit([()] * 5, "processes", outputs=range(5))
    commands = d(e.WorkerStarted(1))
    assert [task for run in commands for task in run.tasks] == [100, 101, 102, 103, 104]
    assert d(e.WorkerStarted(2)) == [c.Revoke(1, [103, 104])]
    assert d(e.TasksRevoked(1, [103, 104])) == [c.RunAt(2, [103]), c.RunAt(2, [104])]


def test_a_worker_is_not_asked_again_before_it_has_made_progress() -> None:
    d = Driver(cores=3)
    d.know("f", FREE, 0.004)
    d.submit([()] * 6, "processes", outputs=range(6), limit=3)
    d(e.WorkerStarted(1))
    assert d(e.WorkerStarted(2)) == [c.Revoke(1, [103, 104, 105])]
    assert d(e.TasksRevoked(1, [])) == []
    assert d(e.WorkersIdled()) == []
    (revoke,) = d(ran_away(1, 100))
    assert isinstance(revoke, c.Revoke)


def test_a_chain_is_not_torn_apart() -> None:
    d = Driver()
    d.start_workers(2)
    d.know("f", FREE, 0.004)
    assert d.submit([(), (0,), (1,), (2,)], "processes") == [c.RunAt(1, [100, 101, 102, 103])]
    assert d(ran_away(1, 100, arrived=False)) == []


def test_stealing_takes_what_follows_along() -> None:
    d = Driver()
    d.know("f", FREE, 0.004)
    d.submit([(), (), (1,)], "processes", outputs=[0, 2])
    assert d(e.WorkerStarted(1)) == [c.RunAt(1, [100]), c.RunAt(1, [101, 102])]
    assert d(e.WorkerStarted(2)) == [c.Revoke(1, [101, 102])]
    assert d(e.TasksRevoked(1, [101, 102])) == [c.RunAt(2, [101, 102])]


def test_an_idle_worker_is_stopped_and_one_that_holds_values_is_not() -> None:
    d = Driver(idle_timeout_s=60.0)
    d.start_workers(2)
    d.submit([()], "processes")
    d(ran_away(1, 100, arrived=False))  # its value is still to be published
    assert d(e.WorkersIdled(), after_s=30.0) == []
    assert d(e.WorkersIdled(), after_s=90.0) == [c.Stop(2, False)]
    assert d(e.WorkerDied(2, None, expected=True)) == []
    assert d(e.ValuePublished(100, 1)) == [c.FinishJob(1)]
    assert d(e.WorkersIdled()) == [c.Stop(1, False)]


def test_cancelling_kills_workers_that_are_at_it() -> None:
    d = Driver()
    d.start_workers(2)
    d.submit([()] * 2, "processes", outputs=range(2))
    assert d(e.JobCancelled(1)) == [c.Stop(1, True), c.Stop(2, True)]


def test_a_family_that_was_never_at_a_worker_goes_there_when_that_pays_for_the_imports() -> None:
    d = Driver()
    d.start_workers(1)
    family = d.know("gil", HOLDS, 0.06)
    family.ran_at.clear()
    family.ready_at.clear()
    few = d.submit([()] * 2, families="gil", outputs=range(2), launch_s=1.0)
    assert not any(isinstance(command, (c.Prepare, c.RunAt)) for command in few)
    many = d.submit([()] * 40, families="gil", outputs=range(40), job=2, base=1000, caller=-2, launch_s=1.0)
    assert c.Prepare(1) in many


def test_no_task_waits_for_imports_at_a_worker() -> None:
    d = Driver()
    d.start_workers(1)
    d.know("gil", HOLDS, 0.06).ready_at.clear()
    commands = d.submit([()] * 40, families="gil", outputs=range(40))
    assert [type(command) for command in commands] == [c.RunHere, c.Prepare]
    assert [type(command) for command in d(ran(1, 100))] == [c.RunHere]
    assert {type(command) for command in d(e.WorkerStarted(1))} == {c.RunAt}
