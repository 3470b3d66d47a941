"""Where ready tasks run. Called after every event; pure, like the machine whose state it works on.

Rules, in this order:

1. Slots of this process take what need not or must not leave it, as the family's kind says (``policy``).
2. Workers have a short queue ahead (``ahead_s`` of expected work), because they are far away. A task goes to the worker that
   holds most of its input; consecutive tasks, which are siblings in depth-first order, go together, and a chain or the
   top of a small tree goes with them ("absorbed": it needs nothing but its predecessors in the same queue).
3. No more than the job's limit of slots and workers are engaged for a job.
4. A worker that has run dry takes half of what another one has queued.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from headrace.sched import commands as c
from headrace.sched.policy import FREE, HOLDS, QUICK, UNKNOWN, WIDE
from headrace.sched.state import AWAY, FETCHING, HERE_QUEUED, READY, WAITING, Job, Slot, Task, Worker

if TYPE_CHECKING:
    from headrace.sched.machine import Machine

QUICK_BATCH, QUICK_BUDGET_S = 1024, 0.005
UNKNOWN_BATCH = 16
"""A batch of a slot: long enough to make the bookkeeping cheap, short enough to give memory back and to change course."""
AWAY_BATCH = 256
GUESS_S = 0.003
"""What a task of a family is expected to take as long as none has run."""
STEAL_ABOVE_S = 0.004
"""A queue with less expected work than this behind its head is not worth a round trip."""


def heap_of(m: Machine, task: Task) -> list[int]:
    """The heap of its job in which a ready task waits for its kind of place."""
    job = task.job
    if job.lane == "processes":
        return job.here if task.pinned else job.away
    if job.lane != "auto" or task.pinned:
        return job.here
    kind = task.family.kind
    if kind == WIDE:
        return job.wide
    if task.family.movable and (kind == HOLDS or any(not dep.here for dep in task.deps)):
        return job.away
    return job.here


def place(m: Machine) -> None:
    """Places whatever can be placed now."""
    for job in list(m.jobs.values()):
        if job.here or job.wide or job.away:
            _place_here(m, job)
        if job.away:
            _place_away(m, job)
        if not job.away and m.roomy and job.lane in ("auto", "processes"):
            _steal(m)


def place_slot(m: Machine, slot: Slot) -> None:
    """Gives a slot that has just become free its next batch: no context switch is cheaper than none."""
    if slot.caller:
        return
    for job in m.jobs.values():
        if (job.here or job.wide) and job.lane != "inline" and not slot.batch:
            _fill_slot(m, job, slot)


# ---- workers


def has_room(m: Machine, worker: Worker) -> bool:
    return len(worker.queue) < 2 or (worker.load_s < m.ahead_s and len(worker.queue) < 4 * AWAY_BATCH)


def _place_away(m: Machine, job: Job) -> None:
    _launch(m, job)
    aside: list[int] = []
    while job.away and m.roomy:
        task = _pop(m, job, job.away)
        if task is None:
            break
        if job.lane == "auto" and task.family.kind == HOLDS and not task.family.moving_pays(True, m.cores):
            aside.append(task.id)
            if len(aside) > 32:
                break
            continue
        worker = _choose_worker(m, job, task)
        if worker is None:
            aside.append(task.id)
            break
        _fill_worker(m, job, worker, task)
    for number in aside:
        heappush(job.away, number)


def _launch(m: Machine, job: Job) -> None:
    """Starts workers in the background when there is work for them."""
    target = min(job.limit, m.cores) if job.lane == "processes" else max(1, m.cores - 1)
    missing = target - sum(not worker.stopping for worker in m.workers.values())
    if missing <= 0:
        return
    if job.lane == "auto":
        task = _peek(m, job, job.away)
        if task is None or task.family.kind != HOLDS or not task.family.moving_pays(False, m.cores):
            return
        if m.failed_starts >= m.max_deaths:
            return
    numbers = []
    for _ in range(min(missing, len(job.away))):
        worker = m.workers[m.next_worker] = Worker(m.next_worker, m.now)
        numbers.append(worker.id)
        m.next_worker += 1
    if numbers:
        m.out.append(c.Launch(tuple(numbers)))


def _choose_worker(m: Machine, job: Job, task: Task) -> Worker | None:
    """The worker that holds most of the input that cannot be had elsewhere; without such, the next one with room."""
    best, best_size = None, -1
    for dep in task.deps:
        if not dep.here and dep.workers:
            for number in dep.workers:
                size = dep.size if dep.size >= 0 else 1 << 20
                if size > best_size and not m.workers[number].stopping:
                    best, best_size = m.workers[number], size
    if best is not None and (best in m.roomy or best.load_s < 2 * m.ahead_s) and job.may_engage(best):
        return best
    for worker in m.roomy:
        if job.may_engage(worker):
            return worker
    return None


def _fill_worker(m: Machine, job: Job, worker: Worker, task: Task) -> None:
    """Queues a task, and what naturally goes with it, at a worker."""
    family = task.family
    expected = family.remote_s or family.wall_s or GUESS_S
    places = len(m.roomy) + 1
    fair = -(-(len(job.away) + 1) // (2 * places))
    room = max(1, min(AWAY_BATCH, fair, int((2 * m.ahead_s - worker.load_s) / expected) if expected > 0 else AWAY_BATCH))
    batch: list[int] = []
    pending: dict[Task, int] = {}
    current: Task | None = task
    while current is not None:
        if _fetch_inputs(m, job, worker, current, pending):
            _enqueue(m, worker, current, expected, batch, job.away, pending)
        if len(batch) >= room:
            break
        current = _pop(m, job, job.away, pending)
        if current is not None and current.family is not family and current not in pending:
            cost = current.family.remote_s or current.family.wall_s or GUESS_S
            if cost > m.ahead_s or (job.lane == "auto" and current.family.kind == HOLDS and not current.family.moving_pays(True, m.cores)):
                heappush(job.away, current.id)
                break
            expected = cost
        if current is not None and _belongs_elsewhere(worker, current):
            heappush(job.away, current.id)
            break
    if batch:
        job.engaged.add(worker)
        m.out.append(c.RunAt(worker.id, batch))
    if has_room(m, worker):
        m.roomy.pop(worker, None)
        m.roomy[worker] = None  # to the end of the line
    else:
        m.roomy.pop(worker, None)


def _belongs_elsewhere(worker: Worker, task: Task) -> bool:
    return any(not dep.here and dep.workers and worker.id not in dep.workers for dep in task.deps)


def _enqueue(
    m: Machine, worker: Worker, task: Task, expected: float, batch: list[int], heap: list[int], pending: dict[Task, int]
) -> None:
    task.state = AWAY
    worker.queue[task.id] = expected
    worker.load_s += expected
    batch.append(task.id)
    for dep in task.deps:
        if dep.state != AWAY:
            m.copied(dep, worker)
    if len(task.dependents) == 1:
        _offer(task.dependents[0], heap, pending)


def _offer(dependent: Task, heap: list[int], pending: dict[Task, int]) -> None:
    """One dependency of this task has just been put in a batch; if that was the last one open, it may follow in it."""
    if dependent.state != WAITING:
        return
    count = pending[dependent] = pending.get(dependent, 0) + 1
    if count == dependent.waiting and not dependent.pinned:
        heappush(heap, dependent.id)


def _fetch_inputs(m: Machine, job: Job, worker: Worker, task: Task, pending: dict[Task, int]) -> bool:
    """True if the worker can have all inputs; otherwise asks for the publication of those that other workers keep."""
    if task.state == WAITING:
        # Absorbed: what is not done is in the same batch, but what is done may still be somewhere else.
        missing = [d for d in task.deps if d.state != AWAY and not d.here and not (d.workers and worker.id in d.workers)]
        if missing:
            return False
        return True
    return not _publish_missing(m, task, worker)


def _publish_missing(m: Machine, task: Task, worker: Worker | None) -> bool:
    missing = [d for d in task.deps if not d.here and not (worker is not None and d.workers and worker.id in d.workers)]
    if not missing:
        return False
    task.state = FETCHING
    task.fetches = len(missing)
    for dep in missing:
        publish(m, dep, task)
    return True


def publish(m: Machine, dep: Task, waiter: Task) -> None:
    waiters = m.fetching.get(dep.id)
    if waiters is None:
        assert dep.workers, f"the value of {dep} is nowhere"
        m.fetching[dep.id] = [waiter]
        m.out.append(c.Publish(min(dep.workers), dep.id))
    else:
        waiters.append(waiter)


def _steal(m: Machine) -> None:
    """Half of what another worker has queued for one, or for this process, when that has nothing."""
    if m.busy and all(worker.queue for worker, _ in zip(m.roomy, range(8), strict=False)):
        return
    for victim in m.workers.values():
        if len(victim.queue) > 1 and not victim.revoking and not victim.stopping and victim.up:
            queued = list(victim.queue)
            if victim.load_s - victim.queue[queued[0]] >= STEAL_ABOVE_S:
                victim.revoking = True
                m.out.append(c.Revoke(victim.id, queued[(len(queued) + 1) // 2 :]))
                return


# ---- slots of this process


def _place_here(m: Machine, job: Job) -> None:
    while True:
        slot = _choose_slot(m, job)
        if slot is None or not _fill_slot(m, job, slot):
            return


def _choose_slot(m: Machine, job: Job) -> Slot | None:
    caller = job.caller
    if job.lane == "inline" and caller is not None:
        return None if caller.batch else caller
    if caller is not None and not caller.batch and job.lane == "auto" and job.quick_slot is None:
        task = _peek(m, job, job.here)
        if task is not None and (task.family.kind in (QUICK, UNKNOWN)):
            return caller
    for slot in m.pool:
        if not slot.batch:
            return slot
    if caller is not None and job.nested and not caller.batch:
        return caller
    return None


def _fill_slot(m: Machine, job: Job, slot: Slot) -> bool:
    """Gives an idle slot the next batch of a job; False if there is nothing for it."""
    if not job.may_engage(slot):
        return False
    if job.lane == "inline" and job.futures and m.busy:
        return False
    task = _next_here(m, job)
    if task is None:
        return False
    kind = task.family.kind
    if job.lane == "inline":
        kind = QUICK
    if _publish_missing(m, task, None):
        return True
    batch = [task.id]
    slot.batch = [task]
    task.state = HERE_QUEUED
    slot.job = job
    job.engaged.add(slot)
    budget = 0.0
    if kind in (QUICK, UNKNOWN):
        budget = QUICK_BUDGET_S
        job.quick_slot = slot
        _extend_batch(m, job, slot, task, batch, QUICK_BATCH if kind == QUICK else UNKNOWN_BATCH)
    slot.wide = kind == WIDE
    slot.gil = kind == HOLDS
    slot.solo = not m.busy
    for other in m.busy:
        other.solo = False
    m.busy.add(slot)
    m.out.append(c.RunHere(slot.id, job.id, batch, budget))
    return True


def _next_here(m: Machine, job: Job) -> Task | None:
    """The first ready task, by priority, that may run in this process now; taken out of its heap."""
    if any(slot.wide for slot in m.busy):
        return None
    best: Task | None = None
    heap = None
    for candidate in (job.here, job.wide, job.away):
        if not candidate:
            continue
        if candidate is job.away and (job.lane != "auto" or any(slot.gil for slot in m.busy)):
            continue
        task = _peek(m, job, candidate)
        if task is None or (best is not None and best.id < task.id):
            continue
        if candidate is job.here and job.quick_slot is not None and task.family.kind in (QUICK, UNKNOWN):
            continue
        if candidate is job.away and not _may_stay(m, task):
            continue
        best, heap = task, candidate
    if best is None or heap is None:
        return None
    if heap is job.wide and m.busy:
        return None
    heappop(heap)
    return best


def _may_stay(m: Machine, task: Task) -> bool:
    """Whether a task meant for workers may run here: its inputs are here, or its workers have too much to do."""
    away = [dep for dep in task.deps if not dep.here]
    if not away:
        return True
    return all(worker.load_s > 2 * m.ahead_s for dep in away for n in dep.workers or () for worker in (m.workers[n],))


def _extend_batch(m: Machine, job: Job, slot: Slot, task: Task, batch: list[int], size: int) -> None:
    """Adds quick tasks: those that are ready, and those that will be once the batch has come to them."""
    pending: dict[Task, int] = {}
    heap = job.here
    inline = job.lane == "inline"
    current: Task | None = task
    while current is not None:
        for dependent in current.dependents:
            if dependent.state == WAITING:
                count = pending[dependent] = pending.get(dependent, 0) + 1
                if count == dependent.waiting:
                    heappush(heap, dependent.id)
        if len(batch) >= size:
            return
        current = _pop(m, job, heap, pending)
        if current is None:
            return
        kind = current.family.kind
        if (not inline and kind not in (QUICK, UNKNOWN)) or any(not d.here and d.state != HERE_QUEUED for d in current.deps):
            if current.state == READY:
                heappush(heap, current.id)
            return
        if kind == UNKNOWN and not inline:
            size = min(size, len(batch) + UNKNOWN_BATCH)
        current.state = HERE_QUEUED
        batch.append(current.id)
        slot.batch.append(current)


# ---- heaps with stale entries


def _pop(m: Machine, job: Job, heap: list[int], pending: dict[Task, int] | None = None) -> Task | None:
    """The first task of a heap that is ready and belongs there (or, given ``pending``, may follow in the batch)."""
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
        elif pending and task.state == WAITING and pending.get(task) == task.waiting and not (task.pinned and heap is job.away):
            return task
    return None


def _peek(m: Machine, job: Job, heap: list[int]) -> Task | None:
    task = _pop(m, job, heap)
    if task is not None:
        heappush(heap, task.id)
    return task


__all__ = ["FREE", "heap_of", "place", "place_slot"]
