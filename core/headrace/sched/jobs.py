"""Jobs and futures: how they come in, and how they end, well or not."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.away import leave_workers, stop
from headrace.sched.heaps import heap_of, make_ready
from headrace.sched.here import retire_slots
from headrace.sched.policy import Family, judge
from headrace.sched.state import CANCELLED, DONE, FAILED, FETCHING, MAKES, READS, READY, WAITING, Job, Slot, Task
from headrace.sched.values import drop, forget, release, settle, stop_fetching

if TYPE_CHECKING:
    from headrace.sched.machine import Machine

FUTURES = 0
"""The number of the job that all futures belong to."""

MOST_FAMILIES = 4096
"""About 4 MB. What is forgotten, and comes again, is measured again."""


def job_submitted(m: Machine, event: e.JobSubmitted) -> None:
    caller = None
    if event.caller is not None:
        caller = m.slots[event.caller] = Slot(event.caller, caller=True)
    job = Job(event.job, event.lane, max(1, event.limit), caller, event.nested)
    if m.up:
        job.judged_from(m.now)
    m.launch_s = event.launch_s
    m.jobs[job.id] = job
    m.autos += job.lane == "auto"
    _try_workers_again(m, job)
    _make_tasks(m, job, event)
    new = job.tasks
    for index in event.pinned:
        new[index].pinned = True
    for index in event.outputs:
        task = new[index]
        if not task.wanted:
            task.wanted = True
            if not task.here:
                job.open += 1
    _file_ready(m, job)
    m.hungry[job] = None
    if job.open == 0:
        m.ending.append(job)


def _make_tasks(m: Machine, job: Job, event: e.JobSubmitted) -> None:
    tasks, literals, new, make = m.tasks, event.literals, job.tasks, m.task_type
    number, name, family = event.base, None, None
    for deps, its_name in zip(event.deps, event.families, strict=True):
        if its_name is not name or family is None:  # neighbours are of one family nearly always
            name, family = its_name, _family(m, its_name)
        if literals and number - event.base in literals:
            task = make(number, job, (), family, DONE)
            task.here = True
            task.consumers = 1  # never released while the job lives: there is no call that could make it again
        elif deps:
            task = make(number, job, tuple([new[dep] for dep in deps]), family)
            family.pending += 1
            for dep in task.deps:
                if dep.dependents is None:
                    dep.dependents = [task]
                else:
                    dep.dependents.append(task)
                dep.consumers += 1
                if dep.state == DONE:
                    task.waiting -= 1
        else:
            task = make(number, job, (), family)
            family.pending += 1
        new.append(task)
        tasks[number] = task
        number += 1


def _family(m: Machine, name: Hashable) -> Family:
    family = m.families.get(name)
    if family is None:
        if len(m.families) >= m.most_families:
            _forget_families(m)
        family = m.families[name] = Family(name)
    return family


def _forget_families(m: Machine) -> None:
    """Names may be new for ever: of the families that have nothing to do, the older half goes."""
    unused = [name for name, family in m.families.items() if not family.pending]
    for name in unused[: -(-len(unused) // 2)]:
        del m.families[name]
    m.most_families = max(MOST_FAMILIES, 2 * len(m.families))


def _file_ready(m: Machine, job: Job) -> None:
    # Nothing but literals is done, and ids rise: what is appended to an empty heap in this order is a heap.
    family, heap = None, job.free
    for task in job.tasks:
        if task.waiting == 0 and task.state == WAITING:
            task.state = READY
            if task.pinned or task.family is not family:
                heap = heap_of(m, task)
                family = None if task.pinned else task.family
            heap.append(task.id)


def future_submitted(m: Machine, event: e.FutureSubmitted) -> None:
    job = m.jobs[FUTURES]
    _try_workers_again(m, job)
    deps = tuple([m.tasks[dep] for dep in event.deps])
    task = m.tasks[event.task] = m.task_type(event.task, job, deps, _family(m, event.family))
    task.wanted = True
    for dep in deps:
        if dep.state in (FAILED, CANCELLED):
            task.state = dep.state
            task.deps = ()
            m.out.append(c.FailFuture(task.id, *m.causes[dep]) if dep.state == FAILED else c.CancelFuture(task.id))
            if dep.state == FAILED:
                m.causes[task] = m.causes[dep]
            return
    job.open += 1
    task.family.pending += 1
    for dep in deps:
        if dep.dependents is None:
            dep.dependents = []
        dep.dependents.append(task)
        dep.consumers += 1
        if dep.state == DONE:
            task.waiting -= 1
        if dep.stage & MAKES:
            task.stage |= READS
            m.out.append(c.Expect(dep.id, (task.id,)))
    if task.waiting == 0:
        make_ready(m, task)


def _try_workers_again(m: Machine, job: Job) -> None:
    """Workers could not be started for an earlier job; this one has nowhere else to go."""
    if job.lane == "processes" and m.live == 0:
        m.failed_starts = 0


def futures_dropped(m: Machine, event: e.FuturesDropped) -> None:
    for number in event.tasks:
        task = m.tasks.get(number)
        if task is None or not task.wanted:
            continue
        task.wanted = False
        if task.state in (FAILED, CANCELLED):
            m.causes.pop(task, None)
            drop(m, task)
            forget(m, task)
            continue
        if not task.here:
            task.job.open -= 1
        if task.state == DONE and task.consumers == 0:
            release(m, task)


def tasks_cancelled(m: Machine, event: e.TasksCancelled) -> None:
    for number in event.tasks:
        task = m.tasks.get(number)
        if task is not None and task.job.futures and task.state in (WAITING, READY, FETCHING):
            _end_future(m, task, CANCELLED, lambda t: c.CancelFuture(t.id))


def job_cancelled(m: Machine, event: e.JobCancelled) -> None:
    job = m.jobs.get(event.job)
    if job is None:
        return
    for worker in m.workers.values():
        head = next(iter(worker.queue.values()), None)
        if head is not None and head[0].job is job and not worker.stopping:
            stop(m, worker, kill=True)
    close(m, job)


def fail(m: Machine, task: Task, deaths: int = 0) -> None:
    """A task has raised, or is given up: its job fails, or what depends on it if it is a future."""
    if task.job.futures:

        def command(failed: Task) -> c.Command:
            m.causes[failed] = (task.id, deaths)
            return c.FailFuture(failed.id, task.id, deaths)

        _end_future(m, task, FAILED, command)
    else:
        m.out.append(c.FailJob(task.job.id, task.id, deaths))
        close(m, task.job)


def _end_future(m: Machine, first: Task, state: int, command: Callable[[Task], c.Command]) -> None:
    """Fails or cancels a future and all that depend on it."""
    stack = [first]
    while stack:
        task = stack.pop()
        if task.state in (DONE, FAILED, CANCELLED):
            continue
        stop_fetching(m, task)
        task.state = state
        task.family.pending -= 1
        stack.extend(task.dependents or ())
        expect_no_more(m, task)
        settle(m, task)
        if task.wanted:
            task.job.open -= 1
            m.out.append(command(task))
        else:
            drop(m, task)
            forget(m, task)


def expect_no_more(m: Machine, task: Task) -> None:
    """A task that has not run will not."""
    if task.stage & READS:
        m.out.extend([c.Expect(dep.id, (task.id,), coming=False) for dep in task.deps if dep.stage & MAKES])


def finish(m: Machine, job: Job) -> None:
    """Every wanted value can be had. The shell releases those itself, once its caller has taken them."""
    m.out.append(c.FinishJob(job.id))
    if job.moved and job.began_s is not None:
        serial_s = sum(task.family.wall_s for task in job.tasks) - job.before_s
        judge(job.moved, serial_s, m.now - job.began_s, m.worked_s)
    close(m, job, finished=True)


def close(m: Machine, job: Job, finished: bool = False) -> None:
    """The job is over, well or not: forget its tasks; what still runs is ignored when it reports."""
    del m.jobs[job.id]
    m.autos -= job.lane == "auto"
    m.hungry.pop(job, None)
    retire_slots(m, job)
    leave_workers(m, job)
    _release_copies(m, job, finished)
    tasks, deaths, fetching = m.tasks, m.deaths, m.fetching
    for task in job.tasks:
        if task.state != DONE:
            task.family.pending -= 1
            expect_no_more(m, task)
        task.dependents = None  # breaks the reference cycles, so that memory goes at once, not at the next collection
        del tasks[task.id]
    if deaths or fetching or m.fetches:
        for task in job.tasks:
            deaths.pop(task.id, None)
            fetching.pop(task.id, None)
            m.fetches.pop(task, None)
    job.tasks = []


def _release_copies(m: Machine, job: Job, finished: bool) -> None:
    releases: dict[tuple[int, ...], list[int]] = {}
    for task in list(job.spread):
        drop(m, task, {} if finished and task.wanted else releases)
    m.out.extend(c.Release(numbers, places) for places, numbers in releases.items())
