"""One event at a time: exactly these commands follow. Every machine here verifies all invariants after each event."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from headrace.errors import InternalError
from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.away import LONG_S
from headrace.sched.check import verify
from headrace.sched.here import OUTLIER_S, QUICK_BUDGET_S, STALLED_S, UNKNOWN_BATCH
from headrace.sched.log import Log
from headrace.sched.machine import FUTURES, Machine
from headrace.sched.policy import FREE, HOLDS, QUICK, WIDE, Family
from headrace.sched.state import DONE, TRANSITIONS

BASE = 100
CALLER = -1


class Commands(list[c.Command]):
    """A list that equals another one only if the types of what is in them are equal too."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and list.__eq__(self, other) and [*map(type, self)] == [*map(type, other)]

    __hash__ = None  # type: ignore[assignment]


class Driver:
    """A machine, its clock, and short ways to say what happens."""

    def __init__(self, lane: str = "auto", cores: int = 2, **settings: Any) -> None:
        self.machine = Machine(cores, lane=lane, check=True, **settings)
        self.now = 0.0

    def __call__(self, event: e.Event, after_s: float = 0.001) -> Commands:
        self.now += after_s
        return Commands(self.machine.handle(event, self.now))

    def submit(
        self,
        deps: Sequence[tuple[int, ...]],
        lane: str = "auto",
        families: str | Sequence[str] = "f",
        outputs: Iterable[int] | None = None,
        limit: int = 2,
        job: int = 1,
        base: int = BASE,
        caller: int | None = CALLER,
        **more: Any,
    ) -> Commands:
        names = [families] * len(deps) if isinstance(families, str) else families
        wanted = [len(deps) - 1] if outputs is None else list(outputs)
        more = {"literals": (), "pinned": (), **more}
        return self(e.JobSubmitted(job, base, deps, names, wanted, lane=lane, limit=limit, caller=caller, **more))

    def know(self, name: str, kind: int, wall_s: float = 0.06) -> Family:
        """A family that has been measured before; by default its tasks are too long for the caller."""
        family = self.machine.families[name] = Family(name)
        family.kind, family.wall_s, family.runs = kind, wall_s, 10
        return family

    def start_workers(self, count: int = 2) -> None:
        """Workers that are up and have nothing to do."""
        self.submit([()] * count, "processes", "starter", range(count), count, job=99, base=1, caller=-99)
        for worker in range(1, count + 1):
            self(e.WorkerStarted(worker))
        for worker in self.machine.workers.values():
            if worker.queue:
                self(ran_away(worker.id, *worker.queue))
        assert set(self.machine.jobs) == {FUTURES}
        assert len(self.machine.idle_workers) == count
        for filed in (self.machine.idle_workers, self.machine.roomy):  # so that tests need not think of what has been
            order = sorted(filed, key=lambda worker: worker.id)
            filed.clear()
            filed.update(dict.fromkeys(order))


def span(task: int, wall_s: float = 0.01, cpu_s: float | None = None, width: float = 1.0, size: int = 10) -> e.Span:
    return e.Span(task, 0.0, wall_s, wall_s if cpu_s is None else cpu_s, width, size, 0.0)


def ran(slot: int, *tasks: int, returned: Sequence[int] = (), wall_s: float = 0.06) -> e.SlotRan:
    return e.SlotRan(slot, [span(task, wall_s) for task in tasks], returned)


def ran_away(worker: int, *tasks: int, arrived: bool = True) -> e.WorkerRan:
    return e.WorkerRan(worker, [span(task) for task in tasks], tasks if arrived else ())


def here(
    slot: int, *tasks: int, quick: bool = True, known: bool = True, measured: bool | None = None, job: int = 1
) -> c.RunHere:
    """``quick``: in a batch; ``known``: of families that have run before, which are measured only outside batches."""
    if measured is None:
        measured = not (quick and known)
    if not quick:
        return c.RunHere(slot, job, list(tasks), 0.0, 0.0, measured)
    return c.RunHere(slot, job, list(tasks), QUICK_BUDGET_S, OUTLIER_S if known else STALLED_S, measured)


# ---- this process


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
    d.know("f", FREE, 0.01)
    assert d.submit([()] * 3, outputs=range(3)) == [here(CALLER, 100, quick=False), here(1, 101, quick=False)]
    assert d(ran(CALLER, 100, wall_s=0.01)) == [here(CALLER, 102, quick=False)]


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
    assert d(e.SlotBlocked(1, [])) == [here(fresh, 2, quick=False, job=FUTURES)]
    assert d(e.SlotBlocked(1, [])) == []
    assert d(ran(fresh, 2)) == [c.FinishFuture(2)]
    assert d(ran(1, 1)) == [c.FinishFuture(1)]
    assert list(d.machine.slots) == [fresh]


def test_what_a_blocked_slot_has_not_begun_goes_elsewhere() -> None:
    d = Driver(cores=1, lane="threads")
    d.know("f", QUICK, 1e-6)
    d.submit([()] * 3, "threads", outputs=range(3))
    assert d(e.SlotBlocked(1, [101, 102])) == [here(1 << 20, 101, 102)]


def test_a_job_that_ends_forgets_a_blocked_slot() -> None:
    d = Driver(cores=1)
    d.know("f", FREE)
    d.submit([()], outputs=[0])
    d(e.SlotBlocked(1, []))
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
    assert d.submit([()] * 3, families="gil", outputs=range(3)) == [here(1, 100, quick=False, measured=False)]
    assert d(ran(1, 100)) == [here(1, 101, quick=False, measured=False)]


def test_many_that_hold_the_gil_have_workers_started() -> None:
    d = Driver()
    d.know("gil", HOLDS, 0.01)
    assert d.submit([()] * 90, families="gil", outputs=range(90)) == [
        here(CALLER, 100, quick=False, measured=False),
        c.Launch((1,)),
    ]
    (run,) = d(e.WorkerStarted(1))
    assert isinstance(run, c.RunAt)
    assert run.tasks[0] == 101


def test_a_stalled_slot_gives_the_rest_to_another() -> None:
    d = Driver()
    d.submit([()] * 3, outputs=range(3))
    assert d(e.SlotStalled(CALLER, [101, 102])) == [here(1, 101, quick=False)]
    assert d(ran(1, 101)) == [here(1, 102, quick=False)]
    assert d(ran(CALLER, 100)) == []
    assert d(ran(1, 102)) == [c.FinishJob(1)]


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


# ---- workers


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


def test_nothing_is_queued_behind_what_is_long_or_unknown() -> None:
    d = Driver()
    d.start_workers(1)
    d.know("long", FREE, 1.0)
    assert d.submit([()] * 2, "processes", "long", outputs=range(2), limit=1) == [c.RunAt(1, [100])]
    unknown = Driver()
    unknown.start_workers(1)
    assert unknown.submit([()] * 2, "processes", outputs=range(2), limit=1) == [c.RunAt(1, [100])]


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


# ---- what goes wrong at workers


def test_a_dead_workers_tasks_go_elsewhere() -> None:
    d = Driver()
    d.start_workers(2)
    d.know("f", FREE, 0.003)
    d.submit([()] * 2, "processes", outputs=range(2))
    assert d(e.WorkerDied(1, 100)) == [c.Launch((3,)), c.RunAt(2, [100])]


def test_after_three_deaths_a_task_is_given_up() -> None:
    d = Driver(cores=1)
    d.start_workers(1)
    d.submit([(), ()], "processes", outputs=[0, 1], limit=1)
    for worker in (1, 2):
        assert d(e.WorkerDied(worker, 100)) == [c.Launch((worker + 1,))]
        d(e.WorkerStarted(worker + 1))
    assert d(e.WorkerDied(3, 100)) == [c.FailJob(1, 100, deaths=3)]


def test_a_worker_that_was_told_to_stop_blames_nobody() -> None:
    d = Driver(cores=1, max_deaths=1)
    d.start_workers(1)
    d.submit([()], "processes", limit=1)
    assert d(e.WorkerDied(1, 100, expected=True)) == [c.Launch((2,))]


def test_pickling_a_value_may_kill_too() -> None:
    d = Driver(max_deaths=1)
    d.start_workers(2)
    d.submit([(), (), (0, 1)], "processes")
    d(ran_away(1, 100, arrived=False))
    d(ran_away(2, 101, arrived=False))
    assert d(e.WorkerDied(2, 101)) == [c.FailJob(1, 101, deaths=1), c.Release([100], (1,))]


def test_in_lane_processes_a_job_fails_when_no_worker_can_be_started() -> None:
    d = Driver(cores=1)
    assert d.submit([()], "processes", limit=1) == [c.Launch((1,))]
    assert d(e.WorkerDied(1, None)) == [c.Launch((2,))]
    assert d(e.WorkerDied(2, None)) == [c.Launch((3,))]
    assert d(e.WorkerDied(3, None)) == [c.FailJob(1, 100, deaths=3)]
    assert d.submit([()], "processes", job=2, limit=1) == [c.Launch((4,))]  # and the next one tries again


def test_in_lane_auto_everything_runs_here_when_no_worker_can_be_started() -> None:
    d = Driver()
    d.know("gil", HOLDS)
    assert d.submit([()] * 90, families="gil", outputs=range(90))[1:] == [c.Launch((1,))]
    assert d(e.WorkerDied(1, None)) == [c.Launch((2,))]
    assert d(e.WorkerDied(2, None)) == [c.Launch((3,))]
    assert d(e.WorkerDied(3, None)) == []
    assert d(ran(1, 100)) == [here(1, 101, quick=False, measured=False)]


def test_a_task_that_took_down_a_worker_never_runs_here() -> None:
    d = Driver()
    d.start_workers(1)
    d.know("gil", HOLDS)
    assert d.submit([(), ()], families="gil", outputs=[0, 1]) == [
        here(1, 100, quick=False, measured=False),
        c.RunAt(1, [101]),
    ]
    assert d(e.WorkerDied(1, 101)) == [c.Launch((2,))]
    assert d(ran(1, 100)) == []
    for worker in (2, 3):
        assert d(e.WorkerStarted(worker)) == [c.RunAt(worker, [101])]
        last = d(e.WorkerDied(worker, 101))
    assert last == [c.FailJob(1, 101, deaths=3)]


def test_lost_inputs_are_made_again_released_ones_too() -> None:
    d = Driver()
    d.start_workers(1)
    d.submit([(), (0,), (1,), (), (2, 3)], "processes", limit=1)
    d(ran_away(1, 100, arrived=False))
    assert d(ran_away(1, 101, arrived=False)) == [c.Release([100], (1,))]
    assert d(ran_away(1, 102, arrived=False)) == [c.Release([101], (1,))]
    (launch,) = d(e.WorkerDied(1, 103))
    worker = launch.workers[0]
    assert d(e.WorkerStarted(worker)) == [c.RunAt(worker, [100, 101, 102])]
    assert d(ran_away(worker, 100, 101)) == [c.Release([100], (worker,)), c.RunAt(worker, [103])]
    assert d(ran_away(worker, 102, 103)) == [c.Release([101], (worker,)), c.RunAt(worker, [104])]


def test_a_lost_chain_of_a_hundred_thousand_is_made_again() -> None:
    d = Driver()
    d.machine.verify = None  # once at the end is enough: it looks at everything
    size = 100_000
    d.start_workers(1)
    d.know("f", QUICK, 1e-7)
    d.submit([(), *((i,) for i in range(size - 1)), (size - 1,)], "processes", limit=1)
    worker = d.machine.workers[1]
    while BASE + size - 1 not in worker.queue:
        d(ran_away(1, *worker.queue, arrived=False))
    d(ran_away(1, *[task for task in worker.queue if task < BASE + size], arrived=False))
    (launch,) = d(e.WorkerDied(1, None))
    verify(d.machine)
    assert sum(task.state != DONE for task in d.machine.tasks.values()) == size + 1
    (run,) = d(e.WorkerStarted(launch.workers[0]))
    assert run.tasks[0] == BASE


def test_what_cannot_be_pickled_runs_here_in_lane_auto() -> None:
    d = Driver()
    d.start_workers(1)
    d.know("gil", HOLDS)
    commands = d.submit([()] * 2, families="gil", outputs=range(2))
    assert commands == [here(1, 100, quick=False, measured=False), c.RunAt(1, [101])]
    assert d.machine.tasks[101].family.movable
    assert d(e.TaskUnpicklable(101, 1)) == []
    assert not d.machine.tasks[101].family.movable
    assert d(ran(1, 100)) == [here(1, 101, quick=False, measured=False)]


def test_what_cannot_be_pickled_fails_in_lane_processes_unless_it_must_stay() -> None:
    d = Driver()
    d.start_workers(2)
    d.submit([()] * 2, "processes", outputs=range(2))
    assert d(e.TaskUnpicklable(100, 1, must_stay=True)) == [here(1, 100, quick=False)]
    assert d(e.TaskUnpicklable(101, 2)) == [c.FailJob(1, 101)]


def test_a_result_that_cannot_leave_its_worker_is_made_again_here() -> None:
    d = Driver()
    d.start_workers(2)
    d.submit([(), (), (0, 1)], "processes")
    d(ran_away(1, 100, arrived=False))
    assert d(ran_away(2, 101, arrived=False)) == [c.Publish(2, 101)]
    assert d(e.TaskUnpicklable(101, 2, must_stay=True)) == [here(1, 101, quick=False)]
    assert d(ran(1, 101)) == [c.RunAt(1, [102])]


def test_what_failed_when_it_was_to_be_sent_leaves_the_queue() -> None:
    d = Driver()
    d.start_workers(1)
    d.submit([()], "processes", limit=1)
    assert d(e.TaskRaised(100, e.HERE)) == [c.FailJob(1, 100)]
    assert not d.machine.workers[1].queue


# ---- futures


def test_futures_feed_each_other_and_are_dropped() -> None:
    d = Driver()
    assert d(e.FutureSubmitted(1, (), "f")) == [here(1, 1, job=FUTURES, known=False)]
    assert d(e.FutureSubmitted(2, (1,), "f")) == []
    assert d(ran(1, 1, wall_s=1e-6)) == [c.FinishFuture(1), here(1, 2, job=FUTURES)]
    assert d(e.FuturesDropped((1,))) == []
    assert d(ran(1, 2, wall_s=1e-6)) == [c.Release([1], ()), c.FinishFuture(2)]
    assert d(e.FuturesDropped((2,))) == [c.Release([2], ())]
    assert not d.machine.tasks


def test_a_failed_future_takes_its_dependents_with_it_also_later_ones() -> None:
    d = Driver()
    d(e.FutureSubmitted(1, (), "f"))
    d(e.FutureSubmitted(2, (1,), "f"))
    d(e.FutureSubmitted(3, (2,), "f"))
    assert d(e.TaskRaised(1, e.HERE)) == [c.FailFuture(1, 1), c.FailFuture(2, 1), c.FailFuture(3, 1)]
    assert d(ran(1)) == []
    assert d(e.FutureSubmitted(4, (3,), "f")) == [c.FailFuture(4, 1)]
    assert d(e.FuturesDropped((1, 2, 3, 4))) == [c.Release([1, 2, 3, 4], ())]
    assert not d.machine.tasks
    assert not d.machine.causes


def test_only_what_has_not_started_is_cancelled() -> None:
    d = Driver(cores=1)
    d(e.FutureSubmitted(1, (), "f"))
    d(e.FutureSubmitted(2, (), "f"))
    d(e.FutureSubmitted(3, (2,), "f"))
    assert d(e.TasksCancelled((1, 2))) == [c.CancelFuture(2), c.CancelFuture(3)]
    assert d(ran(1, 1)) == [c.FinishFuture(1)]


def test_a_long_chain_of_futures_frees_its_past() -> None:
    d = Driver()
    d.know("f", QUICK, 1e-6)
    d(e.FutureSubmitted(0, (), "f"))
    for task in range(1, 200):
        d(ran(1, task - 1, wall_s=1e-6))
        d(e.FutureSubmitted(task, (task - 1,), "f"))
        d(e.FuturesDropped((task - 1,)))
        assert set(d.machine.tasks) == {task - 1, task}


def test_a_future_keeps_its_inputs_until_it_is_safe() -> None:
    d = Driver("processes")
    d.start_workers(2)
    d(e.FutureSubmitted(1000, (), "f"))
    d(ran_away(1, 1000))
    d(e.FutureSubmitted(1001, (1000,), "f"))
    (worker,) = [w for w, its in d.machine.workers.items() if its.queue]
    assert d(e.FuturesDropped((1000,))) == []
    assert d(ran_away(worker, 1001, arrived=False)) == []  # large: it will be published, but is not yet
    commands = d(e.WorkerDied(worker, None))
    other = 3 - worker
    assert c.RunAt(other, [1001]) in commands
    assert d(ran_away(other, 1001))[-1] == c.FinishFuture(1001)
    assert set(d.machine.tasks) == {1001}


def test_a_future_that_waits_for_futures_cannot_starve_them() -> None:
    d = Driver()
    d.know("gil", HOLDS)
    d.know("wide", WIDE)
    assert d(e.FutureSubmitted(1, (), "wide")) == [here(1, 1, quick=False, job=FUTURES)]
    assert d(e.FutureSubmitted(2, (), "gil")) == [here(2, 2, quick=False, measured=False, job=FUTURES)]


def test_futures_fail_when_no_worker_can_be_started() -> None:
    d = Driver("processes", cores=1, max_deaths=1)
    d(e.FutureSubmitted(1, (), "f"))
    d(e.FutureSubmitted(2, (1,), "f"))
    assert d(e.WorkerDied(1, None)) == [c.FailFuture(1, 1, deaths=1), c.FailFuture(2, 1, deaths=1)]
    assert d(e.FutureSubmitted(3, (), "f")) == [c.Launch((2,))]


# ---- the log, the table, the check


def test_the_same_events_give_the_same_commands_and_a_task_has_its_story() -> None:
    d = Driver()
    d.submit([(), (0,), (0, 1)], outputs=[2])
    d(ran(CALLER, 100, returned=[101, 102]))
    again = Machine(2)
    for now, event, commands, _ in d.machine.log:
        assert again.handle(event, now) == commands
    assert d.machine.log.complete
    assert [type(entry.event).__name__ for entry in d.machine.story(100)] == ["JobSubmitted", "SlotRan"]
    assert d.machine.story(999) == []


def test_the_log_is_bounded() -> None:
    log = Log(capacity=100)
    for i in range(1000):
        log.append(float(i), e.SlotRan(1, [span(i)], []), [])
    assert len(log) <= 100
    assert not log.complete
    assert log.story(999)


def test_a_forbidden_transition_is_refused() -> None:
    d = Driver()
    d.submit([()])
    task = d.machine.tasks[100]
    with pytest.raises(InternalError, match="may not become"):
        task.state = next(state for state in range(8) if state not in TRANSITIONS[task.state])


@pytest.mark.parametrize("counter", ["waiting", "consumers"])
def test_the_check_finds_a_wrong_counter(counter: str) -> None:
    d = Driver()
    d.submit([(), (0,)])
    task = d.machine.tasks[100]
    setattr(task, counter, getattr(task, counter) + 1)
    with pytest.raises(InternalError):
        verify(d.machine)


def test_the_check_finds_a_lost_wake_up() -> None:
    d = Driver()
    d.know("f", FREE)
    d.submit([()] * 3, outputs=range(3))
    d.machine.idle.append(d.machine.pool[0])
    with pytest.raises(InternalError):
        verify(d.machine)


def test_a_batch_that_stalls_before_it_begins_loses_nothing() -> None:
    d = Driver()
    (run,) = d.submit([()] * 3, outputs=range(3))
    assert run.slot == CALLER
    # The caller has been given no processor since: all is taken from it, and it is not idle before it says so.
    (elsewhere,) = d(e.SlotStalled(CALLER, run.tasks))
    assert elsewhere.slot != CALLER
    assert elsewhere.tasks == run.tasks
    assert d(e.SlotRan(CALLER, [], ())) == []
    assert d(ran(elsewhere.slot, *run.tasks)) == [c.FinishJob(1)]
