"""What goes wrong at workers, one event at a time: exactly these commands follow."""

from __future__ import annotations

from driver import BASE, Driver, here, ran, ran_away

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.check import verify
from headrace.sched.policy import FREE, HOLDS, QUICK
from headrace.sched.state import DONE


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
