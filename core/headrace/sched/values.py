"""The life of a value: made, published, copied, released; and, when a dead worker held the only one, made again.

Lineage. A graph keeps all its tasks until its job ends, so whatever is lost can be run again, from wherever there still
is something to start from. Futures come and go without an end, so a future keeps its inputs until it is *settled*: its
value is HERE or published and cannot be lost, or will never be needed. Then it lets go of its inputs, and a chain of
futures of any length frees its past. ``Release`` is the last that is heard of a future; a task of a graph may still run
again.

No function here is recursive: chains of a hundred thousand tasks are real.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headrace.sched import commands as c
from headrace.sched.heaps import make_ready
from headrace.sched.state import AWAY, DONE, FETCHING, HERE_QUEUED, READY, WAITING, Task, Worker

if TYPE_CHECKING:
    from headrace.sched.machine import Machine


TRIP_S, COPY_BYTES_PER_S, UNKNOWN_BYTES = 0.005, 1e9, 1 << 20
"""What moving a value costs: a round trip to a worker whose thread for this has to wait for the GIL, and a copy."""


def fetch_s(task: Task) -> float:
    """How long it takes to have a value published that only workers hold."""
    return TRIP_S + (task.size if task.size >= 0 else UNKNOWN_BYTES) / COPY_BYTES_PER_S


def done(m: Machine, task: Task) -> None:
    """A task has run to its end; ``here`` and ``workers`` say where its value is."""
    task.state = DONE
    task.family.pending -= 1
    if task.dependents is not None:
        for dependent in task.dependents:
            dependent.waiting -= 1
            if dependent.waiting == 0 and dependent.state == WAITING:
                make_ready(m, dependent)
    if not task.job.futures:
        for dep in task.deps:
            dep.consumers -= 1
            if dep.consumers == 0 and not dep.wanted and dep.state == DONE:
                release(m, dep)
    if task.here:
        arrived(m, task)
    elif task.consumers == 0 and not task.wanted:
        release(m, task)


def arrived(m: Machine, task: Task) -> None:
    """The value of a task that is done can be had everywhere from now on."""
    job = task.job
    if job.futures:
        settle(m, task)
    if task.wanted:
        job.open -= 1
        if job.futures:
            m.out.append(c.FinishFuture(task.id))
        elif job.open == 0:
            m.ending.append(job)
    elif task.consumers == 0:
        release(m, task)


def copied(task: Task, worker: Worker) -> None:
    """A worker has, or is being sent, the value of a task."""
    holders = task.workers
    if holders is None:
        task.workers = worker.alone
        task.job.spread[task] = None
    elif worker.id in holders:
        return
    elif isinstance(holders, set):
        holders.add(worker.id)
    else:
        task.workers = {*holders, worker.id}
    worker.holds[task] = None


def gone_from(task: Task, worker: Worker) -> None:
    """A worker has the value of a task no longer."""
    if task not in worker.holds:
        return
    del worker.holds[task]
    if isinstance(task.workers, set) and len(task.workers) > 1:
        task.workers.discard(worker.id)
    else:
        task.workers = None  # but it stays in ``spread``: if it was published, it still is


def needed(task: Task) -> bool:
    return task.wanted or task.consumers > 0


def release(m: Machine, task: Task) -> None:
    """Nobody needs the value any more."""
    drop(m, task)
    if task.job.futures:
        forget(m, task)
        settle(m, task)


def drop(m: Machine, task: Task, releases: dict[tuple[int, ...], list[int]] | None = None) -> None:
    """Forgets a value wherever it is; the ``Release`` is collected in ``releases``, by default those of this event."""
    places: tuple[int, ...] = ()
    if task.workers is not None:
        places = tuple(task.workers)
        if len(places) > 1:
            places = tuple(sorted(places))
        for number in places:
            del m.workers[number].holds[task]
        task.workers = None
    spread = task.job.spread
    if task in spread:
        del spread[task]
    task.here = False
    (m.releases if releases is None else releases).setdefault(places, []).append(task.id)


def settle(m: Machine, future: Task) -> None:
    """A future will never have to run again: it lets go of its inputs, and these, if nobody needs them, of theirs."""
    stack = [future]
    while stack:
        task = stack.pop()
        deps, task.deps = task.deps, ()
        for dep in deps:
            dep.consumers -= 1
            if dep.dependents is not None and len(dep.dependents) > 2 * dep.consumers + 16:
                dep.dependents = [t for t in dep.dependents if t.deps]
            if dep.state == DONE and not needed(dep):
                drop(m, dep)
                forget(m, dep)
                stack.append(dep)


def forget(m: Machine, future: Task) -> None:
    m.tasks.pop(future.id, None)
    m.deaths.pop(future.id, None)
    future.dependents = None


def fetch(m: Machine, task: Task, worker: Worker | None) -> bool:
    """Whether a ready task must wait until inputs that only (other) workers have are published; asks for that."""
    missing = [d for d in task.deps if not d.here and not (worker is not None and d.workers and worker.id in d.workers)]
    if not missing:
        return False
    task.state = FETCHING
    m.fetches[task] = len(missing)
    for dep in missing:
        waiters = m.fetching.get(dep.id)
        if waiters is None:
            waiters = m.fetching[dep.id] = {}
            assert dep.workers, f"the value of {dep} is nowhere"
            m.out.append(c.Publish(min(dep.workers), dep.id))
        waiters[task] = None
    return True


def stop_fetching(m: Machine, task: Task) -> None:
    """A task no longer waits for publications; these go on."""
    if m.fetches.pop(task, None) is not None:
        for dep in task.deps:
            waiters = m.fetching.get(dep.id)
            if waiters is not None:
                waiters.pop(task, None)


def lose(m: Machine, lost: Iterable[Task]) -> None:
    """Runs tasks again whose values are gone but needed, and whatever they need that is gone as well."""
    stack = list(lost)
    again = []
    while stack:
        task = stack.pop()
        if task.state != DONE or task.here or task.workers:
            continue
        task.state = WAITING
        task.family.pending += 1
        task.waiting = 0
        task.job.spread.pop(task, None)
        m.fetching.pop(task.id, None)
        for dep in task.deps:
            if not task.job.futures:
                dep.consumers += 1
            if dep.state != DONE:
                task.waiting += 1
            elif not dep.here and not dep.workers:
                stack.append(dep)
        for dependent in task.dependents or ():
            if dependent.state in (READY, FETCHING):
                stop_fetching(m, dependent)
                dependent.state = WAITING
            if dependent.state in (WAITING, HERE_QUEUED, AWAY):
                dependent.waiting += 1
        again.append(task)
    for task in again:
        if task.waiting == 0 and task.state == WAITING:
            make_ready(m, task)


def unplace(m: Machine, task: Task) -> None:
    """A task that was in a batch or a queue has not run, and is not there any more."""
    task.state = WAITING
    if task.waiting == 0:
        make_ready(m, task)
