"""Ready tasks, by kind of place and by priority. A task's id is its priority: lower ids first.

Invariant: every READY task's id stands in a heap of its job. Entries go stale (their task has been placed, has gone
back to waiting, is gone) and are dropped when they come to the top; a task whose family has changed kind meanwhile is
then moved to the heap where it belongs. So a change of kind costs nothing but what is touched anyway.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from headrace.sched.policy import HOLDS, QUICK, WIDE
from headrace.sched.state import READY, Job, Task

if TYPE_CHECKING:
    from headrace.sched.machine import Machine


def heap_of(m: Machine, task: Task) -> list[int]:
    """The heap in which a ready task waits for its kind of place.

    quick: a batch of any one slot; free: a slot; wide: a slot, alone; gil: a slot, one at a time; away: a worker, but
    in lane ``auto`` a slot that has nothing else to do may take it, as from ``gil``, unless it took down a worker: it
    shall not take down this process.

    Futures are neither wide nor one at a time: a task that waits for a future which must wait for that task would never
    end.
    """
    job = task.job
    lane = job.lane
    if lane == "inline":
        return job.quick
    if lane == "processes":
        return job.free if task.pinned else job.away
    kind = task.family.kind
    if lane == "auto":
        if task.id in m.deaths and not task.pinned and not m.given_up:
            return job.away
        if task.family.movable and not task.pinned and not m.given_up:
            if kind == HOLDS and task.family.moving_pays(m.up > 0, m.cores, m.now):
                return job.away
            for dep in task.deps:
                if not dep.here:
                    return job.away
        if not job.futures:
            if kind == WIDE:
                return job.wide
            if kind == HOLDS:
                return job.gil
    return job.quick if kind <= QUICK else job.free


def make_ready(m: Machine, task: Task) -> None:
    """Everything the task needs is there: it may be placed."""
    task.state = READY
    heappush(heap_of(m, task), task.id)
    m.hungry[task.job] = None


def head(m: Machine, heap: list[int]) -> Task | None:
    """The first ready task that belongs in this heap; it stays there."""
    tasks = m.tasks
    while heap:
        task = tasks.get(heap[0])
        if task is not None and task.state == READY:
            right = heap_of(m, task)
            if right is heap:
                return task
            heappush(right, heappop(heap))
            m.moved = True
        else:
            heappop(heap)
    return None


def tidy(m: Machine, job: Job) -> None:
    """Afterwards each heap of the job is empty or has a ready task on top that belongs there."""
    # One pass is enough: what is moved belongs where it goes, and cannot make that heap's top a wrong one.
    for heap in (job.quick, job.free, job.wide, job.gil, job.away):
        if heap:
            head(m, heap)
