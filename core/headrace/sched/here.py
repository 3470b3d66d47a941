"""The slots of this process: what they are given, and what they report.

Rules of lane ``auto``, which ``heaps.heap_of`` prepares: quick tasks go in batches to one slot of the job at a time,
the caller's if it is idle; a wide task starts when nothing else runs here, and nothing else starts beside it; of tasks
that hold the GIL one runs here; the caller takes part in all that is over soon. Forced lanes keep the first rule only,
and threads without the caller.

Nothing may wait for ever. The caller of a nested job has left a slot to wait here, so it may run whatever the job has
when no rule lets anything else run. A slot whose task waits for a future or a stream is blocked: a fresh one takes its
place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.heaps import head, is_quick, is_stage, take, tidy
from headrace.sched.policy import FREE, HOLDS, PYTHON, QUICK, UNKNOWN, WIDE
from headrace.sched.state import DONE, HERE_QUEUED, READY, WAITING, Job, Slot, Task
from headrace.sched.values import done, fetch, fetch_s, unplace

if TYPE_CHECKING:
    from headrace.sched.machine import Machine

QUICK_BATCH, QUICK_BUDGET_S = 1024, 0.005
STALLED_S, OUTLIER_S = 0.002, 0.02
"""A task of an unknown family that takes this long should not keep the others waiting, nor an outlier of a known
one."""
HELP_BELOW_S = 0.001
"""The caller, too, runs tasks that take less: nobody has to be woken. For longer ones that is nothing, and the main
thread is a worse place for large memory: its allocator hands back what it may need again. It also has to hear Ctrl-C:
code in C is not interrupted."""
UNKNOWN_BATCH = 16
"""Long enough to make the bookkeeping cheap, short enough to give memory back and to change course."""

Choice = tuple[Slot, Task, list[int]]
"""A slot, the task it should begin with, and the heap on top of which that stands. Plain: one is made for each task."""


# ---- placing


def place_here(m: Machine, job: Job) -> None:
    """Fills slots with tasks of a job as long as both are there and the rules allow it."""
    while True:
        tidy(m, job)  # so that choosing moves nothing: what is chosen must stay on top of its heap
        if len(job.engaged) >= job.limit:
            return
        choice = _choose_inline(m, job) if job.lane == "inline" else _choose(m, job)
        if choice is None:
            return
        slot, task, heap = choice
        heappop(heap)
        if not fetch(m, task, None):
            _fill(m, job, slot, task, quick=heap is job.quick)


def _choose_inline(m: Machine, job: Job) -> Choice | None:
    caller = job.caller
    if caller is None and m.idle and not any(not slot.stalled for slot in m.busy):
        caller = m.idle[-1]
    if caller is None or caller in m.busy:
        return None
    task = head(m, job.quick)
    return None if task is None else (caller, task, job.quick)


def _choose(m: Machine, job: Job) -> Choice | None:
    # Not by its batch: one that stalled before it began has lost all of that, and is still busy until it says so.
    caller = job.caller if job.caller is not None and job.caller not in m.busy else None
    pool = m.idle[-1] if m.idle else None
    best: Choice | None = None
    if m.wide == 0 or job.futures or job.lane != "auto":
        helper = caller if job.lane == "auto" else None
        if job.quick and job.quick_slot is None:
            slot = caller if caller is not None and (job.lane == "auto" or job.nested) else pool
            best = _better(m, job.quick, slot, best)
        if pool is not None or helper is not None:
            best = _better(m, job.free, pool, best, helper)
            if m.gil == 0 or job.futures:
                best = _better(m, job.gil, pool, best, helper)
                if job.lane == "auto":
                    best = _better(m, job.away, pool, best, helper)
            best = _better(m, job.wide, pool, best, helper)
            if best is not None and m.busy:
                _, _, heap = best
                if heap is job.wide:
                    best = None  # it is not alone yet: whatever comes after it waits too, or its turn would never come
    if best is None and job.nested and caller is not None:
        for heap in (job.quick, job.free, job.wide, job.gil, job.away if job.lane == "auto" else []):
            best = _better(m, heap, caller, best)
    return best


def _better(
    m: Machine, heap: list[int], slot: Slot | None, best: Choice | None, helper: Slot | None = None
) -> Choice | None:
    """The choice with the lower id. ``helper``: the caller, who takes what is known to be over soon."""
    if not heap:
        return best
    task = head(m, heap)
    if task is None:
        return best
    if best is not None:
        _, first, _ = best
        if first.id < task.id:
            return best
    if helper is not None and task.family.runs and task.family.wall_s < HELP_BELOW_S and not is_stage(task):
        slot = helper
    if slot is None:
        return best
    if heap is task.job.away and not _may_stay(m, task):
        return best
    return slot, task, heap


def _may_stay(m: Machine, task: Task) -> bool:
    """Whether a task meant for workers may run here: getting its inputs takes less time than those who have them will
    take to come to it."""
    if task.id in m.deaths:
        return False
    missing_s = sum(fetch_s(dep) for dep in task.deps if not dep.here)
    return missing_s == 0.0 or all(
        m.workers[number].load_s > missing_s for dep in task.deps if not dep.here for number in dep.workers or ()
    )


def _fill(m: Machine, job: Job, slot: Slot, task: Task, quick: bool) -> None:
    """Gives an idle slot its next batch, beginning with a task."""
    kind = FREE if is_stage(task) else task.family.kind
    task.state = HERE_QUEUED
    slot.batch = [task]
    batch = [task.id]
    if quick:
        job.quick_slot = slot
        _extend(m, job, slot, batch)
        kinds = {task.family.kind for task in slot.batch}
        patience_s = STALLED_S if UNKNOWN in kinds else OUTLIER_S
        measured = not kinds.issubset(PYTHON)
        m.out.append(c.RunHere(slot.id, job.id, batch, QUICK_BUDGET_S, patience_s, measured))
    else:
        m.out.append(c.RunHere(slot.id, job.id, batch, 0.0, 0.0, kind not in PYTHON))
    _engage(m, job, slot, kind)


def _engage(m: Machine, job: Job, slot: Slot, kind: int) -> None:
    slot.job = job
    slot.since_s = m.now
    job.engaged[slot] = None
    if not slot.caller:
        m.idle.remove(slot)
    if job.lane == "auto" and not job.futures:
        slot.wide = kind == WIDE
        slot.gil = kind == HOLDS
        m.wide += slot.wide
        m.gil += slot.gil
    slot.solo = not m.busy
    if m.solo is not None:
        m.solo.solo = False
    m.solo = slot if slot.solo else None
    m.busy[slot] = None


def _extend(m: Machine, job: Job, slot: Slot, batch: list[int]) -> None:
    """Adds quick tasks: those that are ready, and those that will be once the batch has come to them.

    No more than the slot can be expected to do within its budget: what it gives back was looked at in vain.
    """
    left_s = QUICK_BUDGET_S
    pending: dict[Task, int] = {}
    heap, taken = job.quick, slot.batch
    inline = job.lane == "inline"
    task = taken[0]
    while True:
        if task.dependents is not None:
            for dependent in task.dependents:
                if dependent.state == WAITING and (
                    inline
                    or (is_quick(m, job, dependent.family) and not dependent.stage and dependent.id not in m.deaths)
                ):
                    count = pending[dependent] = pending.get(dependent, 0) + 1
                    if count == dependent.waiting:
                        heappush(heap, dependent.id)
        left_s -= task.family.wall_s if task.family.runs else QUICK_BUDGET_S / UNKNOWN_BATCH
        if len(batch) >= QUICK_BATCH or left_s <= 0.0:
            return
        candidate = take(m, heap, pending)
        if candidate is None:
            return
        task = candidate
        if task.family.kind == HOLDS and job.free and job.free[0] < task.id:
            # It makes more of something while what uses it up waits for a slot.
            if task.state == READY:
                heappush(heap, task.id)
            return
        for dep in task.deps:
            if not dep.here and dep.state == DONE:  # at a worker: it must be fetched first, and not in this batch
                if task.state == READY:
                    heappush(heap, task.id)
                return
        task.state = HERE_QUEUED
        batch.append(task.id)
        taken.append(task)


# ---- reports


def slot_ran(m: Machine, event: e.SlotRan) -> None:
    slot = m.slots.get(event.slot)
    report(m, slot, event.spans, ended=True)
    take_back(m, event.returned)


def report(m: Machine, slot: Slot | None, spans: Sequence[e.Span], ended: bool = False) -> None:
    """A slot has run these tasks of its batch, or ``ended`` all of it."""
    neighbours = max(1, len(m.busy) - 1)
    beside = bool(spans) and any(other is not slot and _ran_python_since(other, spans[0].start_s) for other in m.busy)
    solo, blocked = slot is not None and slot.solo, slot is not None and slot.blocked
    if slot is not None and ended:
        leave(m, slot)
    if not blocked:  # otherwise they tell how long others took
        _learn(m, spans, solo, neighbours, beside)
    tasks = m.tasks
    for span in spans:
        task = tasks.get(span.task)
        if task is None:
            continue
        if task.state == HERE_QUEUED:
            task.size = span.size_bytes
            task.here = True
            done(m, task)
        else:
            m.releases.setdefault((), []).append(task.id)  # it had failed meanwhile


def _ran_python_since(slot: Slot, start_s: float) -> bool:
    return bool(slot.batch) and slot.since_s <= start_s and slot.batch[-1].family.kind in PYTHON


def slot_stalled(m: Machine, event: e.SlotStalled) -> None:
    slot = m.slots.get(event.slot)
    report(m, slot, event.spans)
    if slot is not None and slot.job is not None:
        _keep_present(slot, event)
        slot.stalled = True
        if slot.job.quick_slot is slot:
            slot.job.quick_slot = None
    take_back(m, event.returned)  # whatever is known of the slot: nobody else has them


def slot_blocked(m: Machine, event: e.SlotBlocked) -> None:
    """What a task waits for may need a slot, so the one that does nothing but wait does not count: a fresh one does."""
    slot = m.slots.get(event.slot)
    report(m, slot, event.spans)
    if slot is not None and slot.job is not None and not slot.caller and not slot.blocked:
        _keep_present(slot, event)
        give_away(m, slot)
    take_back(m, event.returned)


def _keep_present(slot: Slot, event: e.SlotStalled | e.SlotBlocked) -> None:
    """Of a slot's batch only the task that it is at remains; or what has been run since, and is not reported yet."""
    gone = {*event.returned, *[span.task for span in event.spans]}
    slot.batch = [task for task in slot.batch if task.id not in gone]
    if slot.batch:
        slot.batch[-1].family.stalled()


def give_away(m: Machine, slot: Slot) -> None:
    """A slot of the pool goes on with what it is at, but counts no more: a fresh one takes its place."""
    job, batch = slot.job, slot.batch
    leave(m, slot)
    _replace(m, slot)
    slot.job, slot.batch, slot.blocked = job, batch, True
    m.slots[slot.id] = slot


def _replace(m: Machine, slot: Slot) -> None:
    """A slot of the pool that is idle is taken out, and a fresh one put in."""
    m.idle.remove(slot)
    del m.slots[slot.id]
    fresh = m.slots[m.next_slot] = Slot(m.next_slot)
    m.pool[m.pool.index(slot)] = fresh
    m.idle.append(fresh)
    m.next_slot += 1


def take_back(m: Machine, returned: Iterable[int]) -> None:
    for number in returned:
        task = m.tasks.get(number)
        if task is not None and task.state == HERE_QUEUED:
            unplace(m, task)


def quick_tasks_ran(m: Machine, event: e.QuickTasksRan) -> None:
    for name, count, wall_s in event.ran:
        span = e.Span(0, 0.0, wall_s / count, -1.0, -1.0, -1, 0.0)
        family = m.families.get(name)
        if family is not None:
            family.ran_here(span, False, 0, False, m.inline_below_s)


def leave(m: Machine, slot: Slot) -> None:
    """A slot has ended its batch."""
    if slot.blocked:
        del m.slots[slot.id]
        return
    m.busy.pop(slot, None)
    m.pumping.pop(slot, None)
    if m.solo is slot:
        m.solo = None
    m.wide -= slot.wide
    m.gil -= slot.gil
    slot.wide = slot.gil = slot.solo = slot.stalled = False
    slot.batch = []
    job, slot.job = slot.job, None
    if job is not None:
        job.engaged.pop(slot, None)
        if job.quick_slot is slot:
            job.quick_slot = None
        if not slot.caller:
            m.idle.append(slot)


def retire_slots(m: Machine, job: Job) -> None:
    """The job ends. A thread cannot be stopped: pool slots that still run its tasks are replaced by fresh ones."""
    for slot in [slot for slot in m.slots.values() if slot.job is job]:
        leave(m, slot)
        if not slot.caller and not slot.blocked:
            _replace(m, slot)
    if job.caller is not None:
        del m.slots[job.caller.id]


def _learn(m: Machine, spans: Sequence[e.Span], solo: bool, neighbours: int, beside: bool) -> None:
    """Feeds the families; a run of quick tasks of one family counts as one sample of their mean."""
    tasks, i, n = m.tasks, 0, len(spans)
    while i < n:
        span = spans[i]
        i += 1
        task = tasks.get(span.task)
        if task is None:
            continue
        family = task.family
        if span.cpu_s < 0.0 and family.kind == QUICK:
            first, total = i - 1, span.wall_s
            while i < n and spans[i].cpu_s < 0.0 and (t := tasks.get(spans[i].task)) is not None and t.family is family:
                total += spans[i].wall_s
                i += 1
            span = span._replace(wall_s=total / (i - first))
        family.ran_here(span, solo, neighbours, beside, m.inline_below_s)
        m.worked_s += span.wall_s
        if family.kind == HOLDS and family.pending > 1 and family.may_move(m.worked_s):
            m.regret_s += span.wall_s
