"""The slots of this process, one event at a time: exactly these commands follow."""

from __future__ import annotations

from driver import BASE, CALLER, Driver, here, ran, span

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.here import UNKNOWN_BATCH
from headrace.sched.machine import FUTURES
from headrace.sched.policy import FREE, HOLDS, QUICK, WIDE


def test_unknown_tasks_go_to_the_caller_in_one_short_batch() -> None:
    d = Driver()
    assert d.submit([()] * 20, outputs=range(20)) == [here(CALLER, *range(BASE, BASE + UNKNOWN_BATCH), known=False)]


def test_quick_tasks_follow_in_long_batches_and_the_job_finishes() -> None:
    d = Driver()
    d.know("f", QUICK, 1e-6)
    tasks = range(BASE, BASE + 20)
    assert d.submit([()] * 20, outputs=range(20)) == [here(CALLER, *tasks)]
    assert d(ran(CALLER, *tasks, wall_s=1e-6)) == [c.FinishJob(1)]
    assert not d.machine.tasks


def test_a_batch_takes_along_what_it_makes_ready() -> None:
    d = Driver()
    d.know("f", QUICK, 1e-6)
    assert d.submit([(), (0,), (), (1, 2)]) == [here(CALLER, 100, 101, 102, 103)]
    assert d(ran(CALLER, 100, 101, returned=[102, 103], wall_s=1e-6)) == [c.Release([100], ()), here(CALLER, 102, 103)]
    assert d(ran(CALLER, 102, 103)) == [c.Release([101, 102], ()), c.FinishJob(1)]


def test_free_tasks_fill_the_pool_one_each() -> None:
    d = Driver()
    d.know("f", FREE)
    assert d.submit([()] * 3, outputs=range(3)) == [here(1, 100, quick=False), here(2, 101, quick=False)]
    assert d(ran(2, 101)) == [here(2, 102, quick=False)]


def test_the_caller_helps_with_what_is_over_soon() -> None:
    d = Driver()
    d.know("f", FREE, 0.0005)
    assert d.submit([()] * 3, outputs=range(3)) == [here(CALLER, 100, quick=False), here(1, 101, quick=False)]
    assert d(ran(CALLER, 100, wall_s=0.0005)) == [here(CALLER, 102, quick=False)]


def test_the_caller_leaves_what_takes_longer_to_the_pool() -> None:
    d = Driver()
    d.know("f", FREE, 0.01)
    assert d.submit([()] * 3, outputs=range(3)) == [here(1, 100, quick=False), here(2, 101, quick=False)]


def test_brief_tasks_that_hold_the_gil_go_in_batches() -> None:
    d = Driver()
    d.know("gil", HOLDS, 0.002)
    assert d.submit([()] * 5, families="gil", outputs=range(5)) == [here(CALLER, 100, 101, 102)]


def test_a_slot_that_waits_for_a_future_is_replaced_and_goes_in_the_end() -> None:
    d = Driver(cores=1)
    d.know("f", FREE)
    fresh = 1 << 20
    assert d(e.FutureSubmitted(1, (), "f")) == [here(1, 1, quick=False, job=FUTURES)]
    assert d(e.FutureSubmitted(2, (), "f")) == []
    assert d(e.SlotBlocked(1, [], [])) == [here(fresh, 2, quick=False, job=FUTURES)]
    assert d(e.SlotBlocked(1, [], [])) == []
    assert d(ran(fresh, 2)) == [c.FinishFuture(2)]
    assert d(ran(1, 1)) == [c.FinishFuture(1)]
    assert list(d.machine.slots) == [fresh]


def test_what_a_blocked_slot_has_not_begun_goes_elsewhere() -> None:
    d = Driver(cores=1, lane="threads")
    d.know("f", QUICK, 1e-6)
    d.submit([()] * 3, "threads", outputs=range(3))
    assert d(e.SlotBlocked(1, [], [101, 102])) == [here(1 << 20, 101, 102)]


def test_a_job_that_ends_forgets_a_blocked_slot() -> None:
    d = Driver(cores=1)
    d.know("f", FREE)
    d.submit([()], outputs=[0])
    d(e.SlotBlocked(1, [], []))
    d(e.JobCancelled(1))
    assert d(ran(1, 100)) == []
    assert list(d.machine.slots) == [1 << 20]


def test_quick_tasks_do_not_wait_behind_slow_ones() -> None:
    d = Driver()
    d.know("slow", FREE)
    d.know("quick", QUICK, 1e-6)
    commands = d.submit([()] * 4, families=["slow", "slow", "slow", "quick"], outputs=range(4), limit=4)
    assert commands == [here(1, 100, quick=False), here(2, 101, quick=False), here(CALLER, 103)]


def test_a_wide_task_runs_alone() -> None:
    d = Driver()
    d.know("wide", WIDE)
    d.know("free", FREE)
    assert d.submit([()] * 3, families=["free", "wide", "free"], outputs=range(3)) == [here(1, 100, quick=False)]
    assert d(ran(1, 100)) == [here(1, 101, quick=False)]
    assert d(e.SlotRan(1, [span(101, 0.06, 0.06, width=4.0)], [])) == [here(1, 102, quick=False)]


def test_of_tasks_that_hold_the_gil_one_runs_here() -> None:
    d = Driver()
    d.know("gil", HOLDS)
    first = d.submit([()] * 3, families="gil", outputs=range(3), launch_s=1.0)
    assert first == [here(1, 100, quick=False, measured=False)]
    assert d(ran(1, 100)) == [here(1, 101, quick=False, measured=False)]


def test_many_that_hold_the_gil_have_workers_started() -> None:
    d = Driver()
    d.know("gil", HOLDS, 0.01)
    assert d.submit([()] * 90, families="gil", outputs=range(90)) == [
        here(1, 100, quick=False, measured=False),
        c.Launch((1,)),
    ]
    (run,) = d(e.WorkerStarted(1))
    assert isinstance(run, c.RunAt)
    assert run.tasks[0] == 101


def test_a_stalled_slot_gives_the_rest_to_another() -> None:
    d = Driver()
    d.submit([()] * 3, outputs=range(3))
    assert d(e.SlotStalled(CALLER, [], [101, 102])) == [here(1, 101, quick=False)]
    assert d(ran(1, 101)) == [here(1, 102, quick=False)]
    assert d(ran(CALLER, 100)) == []
    assert d(ran(1, 102)) == [c.FinishJob(1)]


def test_what_a_stalled_slot_has_run_is_there_for_others() -> None:
    d = Driver()
    d.submit([(), (), (0,)], outputs=[1, 2])
    stalled = e.SlotStalled(CALLER, [span(100)], [102])
    assert d(stalled) == [here(1, 102, quick=False)]
    assert d(ran(CALLER, 101)) == []
    assert d(ran(1, 102))[-1] == c.FinishJob(1)


def test_lane_threads_leaves_the_caller_alone() -> None:
    d = Driver()
    assert d.submit([()] * 2, "threads", outputs=range(2)) == [here(1, 100, 101, known=False)]


def test_lane_inline_runs_everything_in_the_caller() -> None:
    d = Driver()
    d.know("wide", WIDE, 0.001)
    assert d.submit([()] * 2, "inline", families="wide", outputs=range(2)) == [here(CALLER, 100, 101, measured=True)]


def test_no_more_than_the_limit_are_engaged() -> None:
    d = Driver(cores=4)
    d.know("f", FREE)
    assert d.submit([()] * 5, outputs=range(5), limit=2) == [here(1, 100, quick=False), here(2, 101, quick=False)]


def test_a_failure_ends_the_job_and_frees_the_slot() -> None:
    d = Driver()
    d.know("f", FREE)
    d.submit([()] * 3, outputs=range(3))
    assert d(e.TaskRaised(101, e.HERE)) == [c.FailJob(1, 101)]
    assert d(ran(1, 100)) == []  # its slot has been replaced, since nobody can stop a thread
    assert sorted(d.machine.slots) == [1 << 20, (1 << 20) + 1]


def test_a_cancelled_job_is_forgotten() -> None:
    d = Driver()
    d.submit([(), (0,)])
    assert d(e.JobCancelled(1)) == []
    assert d(ran(CALLER, 100, 101)) == []
    assert not d.machine.tasks


def test_literals_are_there_and_nothing_to_do_finishes_at_once() -> None:
    d = Driver()
    assert d.submit([()], literals=[0]) == [c.FinishJob(1)]
    assert d.submit([], outputs=[], job=2) == [c.FinishJob(2)]
    d.know("f", QUICK)
    assert d.submit([(), (0,)], literals=[0], job=3) == [here(CALLER, 101, job=3)]


def test_any_number_of_nested_callers_goes_on() -> None:
    d = Driver(cores=2)
    d.know("gil", HOLDS)
    d.know("wide", WIDE)
    assert d.submit([()], families="wide") == [here(1, 100, quick=False)]
    for depth in range(2, 12):
        commands = d.submit(
            [()], families=("wide", "gil")[depth % 2], job=depth, base=100 * depth, caller=-depth, nested=True, limit=1
        )
        assert commands == [here(-depth, 100 * depth, quick=False, measured=depth % 2 == 0, job=depth)]
    for depth in range(11, 1, -1):
        assert d(ran(-depth, 100 * depth)) == [c.FinishJob(depth)]


def test_a_batch_that_stalls_before_it_begins_loses_nothing() -> None:
    d = Driver()
    (run,) = d.submit([()] * 3, outputs=range(3))
    assert run.slot == CALLER
    # The caller has been given no processor since: all is taken from it, and it is not idle before it says so.
    (elsewhere,) = d(e.SlotStalled(CALLER, [], run.tasks))
    assert elsewhere.slot != CALLER
    assert elsewhere.tasks == run.tasks
    assert d(e.SlotRan(CALLER, [], ())) == []
    assert d(ran(elsewhere.slot, *run.tasks)) == [c.FinishJob(1)]
