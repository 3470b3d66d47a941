"""Tasks whose values are streams: their dependents start while they go on.

A *stage* is a task that makes a stream, or reads one. Such a task may take as long as the others of its pipeline, so it
gets a slot to itself, and never the caller's. One that makes a stream keeps its slot while it does, so that no more of
them begin than there are slots; but it *lends* it to what reads a stream and finds none free, and both run.

Stages that wait for each other give their slots away for good, like tasks that wait for futures: ``here.slot_blocked``.

A task that is *deferred* is done when somebody opens its gate, and has no slot meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.heaps import head
from headrace.sched.here import give_away, leave, report, take_back
from headrace.sched.state import CANCELLED, DONE, FAILED, HERE_QUEUED, MAKES, READS, Job
from headrace.sched.values import done

if TYPE_CHECKING:
    from headrace.sched.machine import Machine


def stage_began(m: Machine, event: e.StageBegan) -> None:
    slot = m.slots.get(event.slot)
    task = m.tasks.get(event.task)
    report(m, slot, event.spans)
    if task is not None:
        task.family.streams = True
        if task.state == HERE_QUEUED:  # otherwise another thread was quicker
            m.opening[task.id] = slot if event.stays else None
    if slot is not None and not event.stays:
        leave(m, slot)
    elif slot is not None and slot.job is not None:
        slot.batch = [it for it in slot.batch if it is task]
        if slot.job.quick_slot is slot:
            slot.job.quick_slot = None
    take_back(m, event.returned)


def stream_opened(m: Machine, event: e.StreamOpened) -> None:
    slot = m.opening.pop(event.task, None)
    task = m.tasks.get(event.task)
    if task is None or task.state != HERE_QUEUED:
        return
    task.stage |= MAKES
    task.here = True
    readers = [t for t in task.dependents or () if t.state not in (DONE, FAILED, CANCELLED)]
    for reader in readers:
        reader.stage |= READS
    if readers:
        m.out.append(c.Expect(task.id, tuple([reader.id for reader in readers])))
    if slot is not None and slot.job is task.job and not slot.blocked:
        m.pumping[slot] = None
    done(m, task)


def task_deferred(m: Machine, event: e.TaskDeferred) -> None:
    slot = m.slots.get(event.slot)
    task = m.tasks.get(event.task)
    report(m, slot, event.spans, ended=True)
    if task is not None and task.state == HERE_QUEUED:  # otherwise its gate was open already
        m.opening[task.id] = None
    take_back(m, event.returned)


def gate_opened(m: Machine, event: e.GateOpened) -> None:
    m.opening.pop(event.task, None)
    task = m.tasks.get(event.task)
    if task is not None and task.state == HERE_QUEUED:
        task.here = True
        done(m, task)


def stage_ended(m: Machine, event: e.StageEnded) -> None:
    task = m.tasks.get(event.task)
    if task is not None:
        task.family.streamed(event.busy_s, m.inline_below_s)
    slot = m.slots.get(event.slot)
    if slot is not None:
        leave(m, slot)


def lend(m: Machine, job: Job) -> None:
    """If what is next reads a stream, and there is no slot for it, one that makes a stream does not count any more."""
    while m.pumping and job.free:
        full = len(job.engaged) >= job.limit
        task = head(m, job.free)
        if task is None or not task.stage & READS or not (full or not m.idle):
            return
        slot = next((slot for slot in m.pumping if slot.job is job), None)
        if slot is None and full:
            return  # another job's slot is of no use to this one
        give_away(m, slot or next(iter(m.pumping)))
        m.look_again = True
