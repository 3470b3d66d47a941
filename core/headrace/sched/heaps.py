"""Ready tasks, by kind of place and by priority. A task's id is its priority: lower ids first.

Invariant: every READY task's id stands in a heap of its job. Entries go stale (their task has been placed, has gone
back to waiting, is gone) and are dropped when they come to the top; a task whose family has changed kind meanwhile is
then moved to the heap where it belongs. So a change of kind costs nothing but what is touched anyway.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from headrace.sched.policy import HOLDS, QUICK, WIDE, Family
from headrace.sched.state import READY, WAITING, Job, Task

if TYPE_CHECKING:
    from headrace.sched.machine import Machine


BRIEF_S = 0.005
"""Tasks that hold the GIL and take less go in batches, as quick ones do: giving each out by itself costs too much."""


def heap_of(m: Machine, task: Task) -> list[int]:
    """The heap in which a ready task waits for its kind of place.

    quick: a batch of any one slot, as it is Python that runs and nothing is gained by a second one; free: a slot; wide:
    a slot, alone; gil: a slot, one at a time; away: a worker, but in lane ``auto`` a slot that has nothing else to do
    may take it, as from ``gil``, unless it took down a worker: it shall not take down this process.

    Stages have a slot to themselves: see ``stages``. Futures are neither wide nor one at a time: a task that waits for
    a future which must wait for that task would never end.
    """
    job = task.job
    lane = job.lane
    if lane == "inline":
        return job.quick
    if lane == "processes":
        return job.free if task.pinned or task.stage else job.away
    if is_stage(task):
        return job.free
    kind = task.family.kind
    if lane == "auto":
        if task.id in m.deaths and not task.pinned and not m.given_up:
            return job.away
        if task.family.movable and not task.pinned and not m.given_up:
            if kind == HOLDS and moving_pays(m, task.family):
                return job.away
            for dep in task.deps:
                if not dep.here:
                    return job.away
        if not job.futures:
            if kind == WIDE:
                return job.wide
            if kind == HOLDS:
                return job.quick if task.family.wall_s < BRIEF_S else job.gil
    return job.quick if kind <= QUICK else job.free


def is_stage(task: Task) -> bool:
    """Whether it reads a stream, or is likely to make one."""
    return task.stage != 0 or task.family.streams


def is_quick(m: Machine, job: Job, family: Family) -> bool:
    """Whether a task of this family, once it is ready, will belong in the heap ``quick`` of a job."""
    if family.streams:
        return False
    if family.kind == HOLDS and job.lane == "auto" and not job.futures:
        return family.wall_s < BRIEF_S and not moving_pays(m, family)
    return family.kind <= QUICK


def moving_pays(m: Machine, family: Family) -> bool:
    """Whether tasks of this family, which hold the GIL, should go to worker processes.

    As with hiring and buying: once what was lost for want of workers comes to what they cost, they are started, even if
    no single graph is worth it. Most of what a worker costs is imports: a family for which none made them pays as if
    one had to be started.
    """
    return family.may_move(m.worked_s) and (
        (m.up > 0 and bool(family.ready_at)) or m.regret_s + family.pending * family.wall_s > m.launch_s
    )


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


def take(m: Machine, heap: list[int], pending: dict[Task, int]) -> Task | None:
    """Takes the first task that is ready and belongs in this heap, or may follow its predecessors in a batch.

    Args:
        pending: for each task that the batch brings nearer, how many of its open dependencies are in the batch.
    """
    tasks = m.tasks
    while heap:
        task = tasks.get(heappop(heap))
        if task is None:
            continue
        if task.state == READY:
            right = heap_of(m, task)
            if right is heap:
                return task
            heappush(right, task.id)
            m.moved = True
        elif task.state == WAITING and pending.get(task) == task.waiting:
            return task
    return None


def tidy(m: Machine, job: Job) -> None:
    """Afterwards each heap of the job is empty or has a ready task on top that belongs there."""
    # One pass is enough: what is moved belongs where it goes, and cannot make that heap's top a wrong one.
    for heap in (job.quick, job.free, job.wide, job.gil, job.away):
        if heap:
            head(m, heap)
