"""Futures, one event at a time: exactly these commands follow."""

from __future__ import annotations

from driver import Driver, here, ran, ran_away

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.machine import FUTURES
from headrace.sched.policy import HOLDS, QUICK, WIDE


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
