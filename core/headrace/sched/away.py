"""The worker processes: what they are given, and when they are started and stopped.

Rules:

1. Workers have a short queue ahead (``ahead_s`` of expected work), because they are far away. A task goes to the worker
   that holds most of its input unless that has more to do than moving the input would cost; consecutive tasks, which
   are siblings in depth-first order, go together, and a chain or the top of a small tree goes with them ("absorbed": it
   needs nothing but its predecessors in the same queue, so it could not run anywhere else sooner).
2. No more than the job's limit of slots and workers are engaged for a job.
3. Where tasks hold the GIL, a worker has imported what they need before it is given any: this process does not wait for
   that, but runs them meanwhile.
4. For a worker that has run dry, half of what another one has queued is asked back. No worker is asked twice before it
   has made progress, so no task can move to and fro for ever; but a worker that has just started may ask all.

Nothing here looks at all workers: ``roomy``, ``idle_workers`` and ``victims`` are kept up to date by ``note_room``.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING

from headrace.sched import commands as c
from headrace.sched.heaps import head, take
from headrace.sched.policy import HOLDS, Family
from headrace.sched.state import AWAY, DONE, READY, WAITING, Job, Task, Worker
from headrace.sched.values import COPY_BYTES_PER_S, TRIP_S, UNKNOWN_BYTES, copied, fetch

if TYPE_CHECKING:
    from headrace.sched.machine import Machine

AWAY_BATCH = 256
QUEUE_LENGTH = 4 * AWAY_BATCH
LONG_S = 0.1
"""Behind a task of this length nothing is queued: a round trip is nothing beside it, and a worker that holds the GIL in
C code cannot even answer when asked to give back what waits behind."""
GUESS_S = LONG_S
"""What a task of a family is expected to take as long as none has run: nothing is queued behind the unknown."""
STEAL_ABOVE_S = 0.003
"""A queue with less expected work than this behind its head is not worth a round trip."""
MOST_LOOKED_AT = 8
"""So many workers are asked whether they have imported what a task needs, when the best one has not, and is busy."""
LATE_S = 0.1
"""A worker that says nothing for this long takes longer than expected, whatever its queue looks like."""


def place_away(m: Machine, job: Job) -> bool:
    """Queues tasks of a job at workers as long as both are there; whether there were any."""
    placed = False
    while m.roomy:
        task = head(m, job.away)
        worker = None if task is None else _choose(m, job, task)
        if task is None or worker is None:
            break
        if not is_ready_for(m, worker, task):
            if not worker.queue:
                prepare(m, worker)
                continue
            worker = _other_ready(m, job, task)
            if worker is None:
                break
        heappop(job.away)
        _fill(m, job, worker, task)
        placed = True
    return placed


def _choose(m: Machine, job: Job, task: Task) -> Worker | None:
    """The worker where the task is likely to start first, its inputs included; None if no worker may take it now."""
    full = len(job.engaged) >= job.limit
    spare = None if full else next(iter(m.idle_workers), None)
    if spare is None:  # the better of any two is nearly as good as the best of all
        spare = min(islice(job.roomy if full else m.roomy, 2), key=_load_s, default=None)
    best, size = _holder(m, task)
    if best is None or not best.up or best.stopping or not job.may_engage(best):
        return spare
    if best not in m.roomy and (best.load_s >= 2.0 * m.ahead_s or len(best.queue) >= QUEUE_LENGTH):
        return spare
    if spare is None or best.load_s <= spare.load_s + TRIP_S + size / COPY_BYTES_PER_S:
        return best
    return spare


def is_ready_for(m: Machine, worker: Worker, task: Task) -> bool:
    """Whether a worker has imported what a task needs, or that is not worth waiting for."""
    family = task.family
    return worker.id in family.ready_at or family.kind != HOLDS or task.job.lane != "auto" or task.id in m.deaths


def _other_ready(m: Machine, job: Job, task: Task) -> Worker | None:
    roomy = islice(m.roomy, MOST_LOOKED_AT)
    return next((worker for worker in roomy if job.may_engage(worker) and is_ready_for(m, worker, task)), None)


def _load_s(worker: Worker) -> float:
    return worker.load_s


def _holder(m: Machine, task: Task) -> tuple[Worker | None, int]:
    """The worker that holds most of the input that can be had nowhere else, and how many bytes that is."""
    best, most = None, -1
    sizes: dict[int, int] = {}
    for dep in task.deps:
        if not dep.here:
            for number in dep.workers or ():
                size = sizes[number] = sizes.get(number, 0) + (dep.size if dep.size >= 0 else UNKNOWN_BYTES)
                if size > most:
                    best, most = m.workers[number], size
    return best, most


def _fill(m: Machine, job: Job, worker: Worker, task: Task) -> None:
    """Queues a task, and what naturally goes with it, at a worker."""
    fair = -(-(len(job.away) + 1) // (2 * len(m.roomy) + 2))  # leave something for the others, and for next time
    full_s = 2.0 * m.ahead_s
    batch: list[int] = []
    pending: dict[Task, int] = {}
    current: Task | None = task
    family, cost = task.family, expected_s(task.family)
    while current is not None:
        if current.family is not family:
            family, cost = current.family, expected_s(current.family)
        if current.state == READY:
            if batch and (fair <= 0 or cost > m.ahead_s or (current.deps and _belongs_elsewhere(worker, current))):
                heappush(job.away, current.id)
                break
            fair -= 1
            if not (current.deps and fetch(m, current, worker)):
                _enqueue(m, job, worker, current, cost, batch, pending)
        elif _is_absorbable(worker, current):
            _enqueue(m, job, worker, current, cost, batch, pending)
        if len(batch) >= AWAY_BATCH or worker.load_s >= full_s:
            break
        current = take(m, job.away, pending)
    if batch:
        m.out.append(c.RunAt(worker.id, batch))
    if worker in m.roomy:  # to the end of the line
        m.roomy[worker] = m.roomy.pop(worker)
    note_room(m, worker)


def expected_s(family: Family) -> float:
    """What a task of a family is expected to cost at a worker."""
    return family.remote_s or family.wall_s or GUESS_S


def _belongs_elsewhere(worker: Worker, task: Task) -> bool:
    return any(not dep.here and dep.workers and worker.id not in dep.workers for dep in task.deps)


def _is_absorbable(worker: Worker, task: Task) -> bool:
    """What is not done is before it in the same batch; but what is done may be somewhere else."""
    return all(d.state != DONE or d.here or (d.workers and worker.id in d.workers) for d in task.deps)


def _enqueue(
    m: Machine, job: Job, worker: Worker, task: Task, cost: float, batch: list[int], pending: dict[Task, int]
) -> None:
    task.state = AWAY
    if not worker.queue:
        worker.heard = m.now
    worker.queue[task.id] = (task, cost)
    worker.load_s += cost
    count = worker.jobs.get(job, 0)
    worker.jobs[job] = count + 1
    if count == 0:
        job.engaged[worker] = None
    if job.lane == "auto":
        job.moved[task.family] = None
    batch.append(task.id)
    for dep in task.deps:
        if dep.state == DONE:
            copied(dep, worker)
    if task.dependents is not None and len(task.dependents) == 1:
        _offer(m, job, task.dependents[0], pending)


def _offer(m: Machine, job: Job, dependent: Task, pending: dict[Task, int]) -> None:
    """One dependency of this task has just been put in a batch; if that was the last one open, it may follow in it."""
    if dependent.state != WAITING or dependent.pinned or (job.lane == "auto" and not dependent.family.movable):
        return
    if job.lane == "processes" and dependent.stage:
        return
    count = pending[dependent] = pending.get(dependent, 0) + 1
    if count == dependent.waiting:
        heappush(job.away, dependent.id)


def dequeue(m: Machine, worker: Worker, number: int) -> Task | None:
    """A task is in a worker's queue no longer. ``note_room`` must follow."""
    entry = worker.queue.pop(number, None)
    if entry is None:
        return None
    task, cost = entry
    worker.load_s -= cost
    count = worker.jobs.get(task.job)
    if count == 1:
        del worker.jobs[task.job]
        task.job.engaged.pop(worker, None)
        task.job.roomy.pop(worker, None)
    elif count is not None:
        worker.jobs[task.job] = count - 1
    if not worker.queue:
        worker.load_s = 0.0
        worker.idle_since = m.now
    return task


# ---- who has room, who has nothing, who has too much


def has_room(m: Machine, worker: Worker) -> bool:
    length = len(worker.queue)
    return length == 0 or (worker.load_s < (LONG_S if length == 1 else m.ahead_s) and length < QUEUE_LENGTH)


def note_room(m: Machine, worker: Worker) -> None:
    """Files a worker whose queue or state has changed."""
    usable = worker.up and not worker.stopping
    length = len(worker.queue)
    if usable and has_room(m, worker):
        m.roomy[worker] = None
        for job in worker.jobs:
            job.roomy[worker] = None
    elif worker in m.roomy:
        del m.roomy[worker]
        for job in worker.jobs:
            job.roomy.pop(worker, None)
    if usable and length == 0:
        m.idle_workers[worker] = None
    elif worker in m.idle_workers:
        del m.idle_workers[worker]
    if usable and length > 1 and worker not in m.asked and _behind_head_s(worker) >= STEAL_ABOVE_S:
        m.victims[worker] = None
    elif worker in m.victims:
        del m.victims[worker]


def _behind_head_s(worker: Worker) -> float:
    _, cost = next(iter(worker.queue.values()))
    return worker.load_s - cost


def steal(m: Machine) -> None:
    """Asks a worker for half of what it has not begun, since another worker, or this process, has nothing to do."""
    thief = next(iter(m.idle_workers), None)
    for victim in list(islice(m.victims, 4)):
        del m.victims[victim]  # until something changes in its queue
        entries = [task for task, _ in victim.queue.values()]
        loose = [task for task in entries[1:] if task.state == AWAY and task.waiting == 0]
        taken = _second_half(entries, [task for task in loose if _suits(task, thief)])
        if loose and not taken:
            m.victims[victim] = None  # to the end of the line: what forbids it may pass
        elif taken:
            victim.revoking = True
            m.asked[victim] = None
            m.out.append(c.Revoke(victim.id, taken))
            return


def _second_half(entries: list[Task], loose: list[Task]) -> list[int]:
    """Of what a worker has not begun and could run elsewhere, and whatever was to follow it in the queue."""
    taken = dict.fromkeys(loose[len(loose) // 2 :])
    if taken:
        for task in entries:
            if task.waiting and any(dep in taken for dep in task.deps):
                taken[task] = None
    return [task.id for task in entries if task in taken]


def _suits(task: Task, thief: Worker | None) -> bool:
    job = task.job
    if thief is not None:
        return job.may_engage(thief)
    return job.lane == "auto" and len(job.engaged) < job.limit and all(dep.here for dep in task.deps)


# ---- starting and stopping


def launch(m: Machine, job: Job) -> None:
    """Starts workers in the background when there is more work for them than for those that have nothing to do."""
    target = m.cores - (job.lane == "auto" and m.cores > 1)
    if m.live >= target or m.failed_starts >= m.max_deaths:
        return
    if job.lane == "processes":
        target = min(target, job.limit)
    task = head(m, job.away)
    if task is None or (job.lane == "auto" and task.family.kind != HOLDS and task.id not in m.deaths):
        return
    waiting = len(job.away) - len(m.idle_workers) - (m.live - m.up)
    numbers = tuple(range(m.next_worker, m.next_worker + min(target - m.live, waiting)))
    if numbers:
        for number in numbers:
            m.workers[number] = Worker(number, m.now)
        _note_ready(m, numbers)
        m.next_worker += len(numbers)
        m.live += len(numbers)
        m.out.append(c.Launch(numbers))


def prepare(m: Machine, worker: Worker) -> None:
    """Has a worker that has nothing to do import what the open jobs need. Until it has, it counts as being started."""
    worker.up = False
    m.up -= 1
    note_room(m, worker)
    _note_ready(m, worker.alone)
    m.out.append(c.Prepare(worker.id))


def _note_ready(m: Machine, workers: Iterable[int]) -> None:
    for family in m.families.values():
        if family.pending:
            family.ready_at.update(workers)
    m.look_again = True


def stop(m: Machine, worker: Worker, kill: bool) -> None:
    worker.stopping = True
    m.live -= 1
    m.up -= worker.up
    note_room(m, worker)
    m.out.append(c.Stop(worker.id, kill))


def leave_workers(m: Machine, job: Job) -> None:
    """The job ends: what workers have not begun of it should not run."""
    for worker in list(job.engaged):
        if isinstance(worker, Worker):
            del worker.jobs[job]
            if not worker.stopping:
                queued = [number for number, (task, _) in worker.queue.items() if task.job is job]
                m.out.append(c.Revoke(worker.id, queued))
    job.engaged = {}
    job.roomy = {}
