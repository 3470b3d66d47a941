"""What must hold after every event. ``verify`` looks at everything, and costs accordingly: it is for tests.

Nothing here is used to decide anything, and nothing is looked up in an index that it could verify instead: rules of
placement are stated a second time, over all ready tasks, so that no shortcut of the machine can hide a lost wake-up.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from headrace.errors import InternalError
from headrace.sched.away import STEAL_ABOVE_S, has_room, is_ready_for
from headrace.sched.heaps import heap_of
from headrace.sched.state import (
    AWAY,
    CANCELLED,
    DONE,
    FAILED,
    FETCHING,
    HERE_QUEUED,
    OPEN,
    READY,
    STATE_NAMES,
    TRANSITIONS,
    WAITING,
    Job,
    Slot,
    Task,
    Worker,
)

if TYPE_CHECKING:
    from headrace.sched.machine import Machine

_state = Task.__dict__["state"]


class CheckedTask(Task):
    """A task that refuses a transition that is not in the table; used when the machine checks itself."""

    __slots__ = ()

    @property
    def state(self) -> int:
        return _state.__get__(self)  # type: ignore[no-any-return]  # slots have no types

    @state.setter
    def state(self, new: int) -> None:
        try:
            old = _state.__get__(self)
        except AttributeError:
            pass  # it is just being made
        else:
            _holds(new in TRANSITIONS[old], f"{self} may not become {STATE_NAMES[new]}")
        _state.__set__(self, new)


def verify(m: Machine) -> None:
    """Raises InternalError if anything is not as it must be."""
    for job in m.jobs.values():
        _verify_job(m, job)
    for task in m.tasks.values():
        _verify_counters(m, task)
        _verify_value(m, task)
        _verify_place(m, task)
    for slot in m.slots.values():
        _verify_slot(m, slot)
    for worker in m.workers.values():
        _verify_worker(m, worker)
    _verify_machine(m)
    _verify_fetching(m)
    _verify_nothing_waits_in_vain(m)
    _verify_stealing(m)
    _verify_progress(m)


def _holds(condition: object, message: str) -> None:
    if not condition:
        raise InternalError(message)


# ---- tasks


def _verify_counters(m: Machine, task: Task) -> None:
    _holds(m.jobs.get(task.job.id) is task.job, f"{task} is of a job that is over")
    if task.state in OPEN:
        waiting = sum(dep.state != DONE for dep in task.deps)
        _holds(task.waiting == waiting, f"{task} waits for {waiting} tasks, not {task.waiting}")
        _holds(task.state not in (READY, FETCHING) or waiting == 0, f"{task} waits for {waiting} tasks")
        _holds(waiting or task.state != WAITING, f"{task} waits for nothing")
    if task.state in (DONE, FAILED, CANCELLED):
        _holds(not task.deps or not (task.job.futures and (task.here or task.state != DONE)), f"{task} is not settled")


def _verify_value(m: Machine, task: Task) -> None:
    somewhere = task.here or bool(task.workers)
    if task.state == DONE:
        _holds(somewhere or not (task.wanted or task.consumers), f"the value of {task} is needed and nowhere")
        _holds(not somewhere or task.wanted or task.consumers, f"the value of {task} is not needed and still there")
    else:
        _holds(not somewhere, f"{task} has not run and has a value")
    for number in task.workers or ():
        _holds(task in m.workers[number].holds, f"worker {number} does not know that it holds {task}")
    _holds(not task.workers or task in task.job.spread, f"{task} is at workers and not known to be")
    _holds(task.here or task.workers is None or len(task.workers) == 1, f"{task} was copied and never published")


def _verify_place(m: Machine, task: Task) -> None:
    if task.state == HERE_QUEUED:
        _holds(task.id in m.opening or any(task in slot.batch for slot in m.slots.values()), f"{task} is in no batch")
        _holds(all(dep.here or dep.state == HERE_QUEUED for dep in task.deps), f"{task} is here and its inputs are not")
    elif task.state == AWAY:
        queues = [worker for worker in m.workers.values() if task.id in worker.queue]
        _holds(len(queues) == 1, f"{task} is in {len(queues)} queues")
        _verify_inputs_away(task, queues[0])
    elif task.state == READY:
        job = task.job
        heaps = (job.quick, job.free, job.wide, job.gil, job.away)
        _holds(any(task.id in heap for heap in heaps), f"{task} is in no heap")
        _holds(job in m.hungry, f"{task} is ready and its job is not looked at")


def _verify_inputs_away(task: Task, worker: Worker) -> None:
    before = list(worker.queue)
    before = before[: before.index(task.id)]
    for dep in task.deps:
        reachable = dep.here or (dep.workers and worker.id in dep.workers) or dep.id in before
        # A value that turned out not to leave its worker is made again here; the worker gives back what it cannot run.
        _holds(reachable or dep.pinned or dep.state != DONE, f"{task} is at worker {worker.id} and {dep} is not")


# ---- jobs, slots, workers


def _verify_job(m: Machine, job: Job) -> None:
    tasks = [task for task in m.tasks.values() if task.job is job]
    _holds(job.futures or len(tasks) == len(job.tasks), f"job {job.id} has lost tasks")
    for task, consumers in _consumers(tasks).items():
        _holds(task.consumers == consumers, f"{task} has {consumers} consumers, not {task.consumers}")
    open = sum(t.wanted and not t.here and t.state not in (FAILED, CANCELLED) for t in tasks)
    _holds(job.open == open, f"job {job.id} has {open} open values, not {job.open}")
    _holds(job.futures or open, f"job {job.id} is finished and still open")
    slots = {slot for slot in m.slots.values() if slot.job is job and not slot.blocked}
    engaged = slots | {worker for worker in m.workers.values() if job in worker.jobs}
    _holds(engaged == set(job.engaged), f"job {job.id} has {engaged} engaged, not {set(job.engaged)}")
    _holds(len(engaged) <= job.limit, f"job {job.id} has {len(engaged)} engaged, more than {job.limit}")
    roomy = {worker for worker in m.roomy if job in worker.jobs}
    _holds(roomy == set(job.roomy), f"job {job.id} has the wrong workers with room")


def _consumers(tasks: list[Task]) -> Counter[Task]:
    found: Counter[Task] = Counter(dict.fromkeys(tasks, 0))
    for task in tasks:
        if task.job.futures or task.state in OPEN:
            for dep in task.deps:
                found[dep] += 1
    for task in tasks:
        literal = not task.job.futures and task.here and task.state == DONE and not task.deps
        if literal and task.consumers == found[task] + 1:
            found[task] += 1  # it counts itself, so as never to be released
    return found


def _verify_slot(m: Machine, slot: Slot) -> None:
    busy = slot in m.busy
    if slot.blocked:
        _holds(slot.job and not (busy or slot in m.pool or slot in m.idle or slot.wide or slot.gil), "it is still used")
        return
    _holds(busy == (slot.job is not None), f"slot {slot.id} is {'busy' if busy else 'idle'} and its job says otherwise")
    _holds(busy or not (slot.batch or slot.wide or slot.gil or slot.stalled), f"slot {slot.id} is idle and not clear")
    _holds(slot.job is None or m.jobs.get(slot.job.id) is slot.job, f"slot {slot.id} is busy with a job that is over")
    if slot.caller:
        _holds(any(job.caller is slot for job in m.jobs.values()), f"slot {slot.id} is the caller of no job")
    else:
        _holds(slot in m.pool and (slot in m.idle) != busy, f"slot {slot.id} is filed wrongly")
    if slot.wide and slot.job is not None and not slot.job.nested:
        others = [other.job for other in m.busy if other is not slot and other.job is not None]
        beside = [job for job in others if job.lane == "auto" and not job.futures and not job.nested]
        _holds(not beside, f"{len(beside)} slots are busy beside a wide task")


def _verify_worker(m: Machine, worker: Worker) -> None:
    who = f"worker {worker.id}"
    load_s = sum(cost for _, cost in worker.queue.values())
    _holds(abs(load_s - worker.load_s) < 1e-6 * (1.0 + load_s), f"{who} has {load_s} s of work, not {worker.load_s}")
    counts = Counter(task.job for task, _ in worker.queue.values() if m.jobs.get(task.job.id) is task.job)
    _holds(counts == Counter(worker.jobs), f"{who} counts the tasks of its jobs wrongly")
    usable = worker.up and not worker.stopping
    _holds((worker in m.roomy) == (usable and has_room(m, worker)), f"{who} is filed wrongly as to its room")
    _holds((worker in m.idle_workers) == (usable and not worker.queue), f"{who} is filed wrongly as idle or not")
    for task in worker.holds:
        _holds(task.workers and worker.id in task.workers, f"{task} does not know that {who} holds it")
    _holds(worker.up or not worker.queue, f"{who} has a queue before it is up")


def _verify_machine(m: Machine) -> None:
    _holds(m.live == sum(not w.stopping for w in m.workers.values()), "live workers are miscounted")
    _holds(m.up == sum(w.up and not w.stopping for w in m.workers.values()), "workers that are up are miscounted")
    _holds(m.wide == sum(slot.wide for slot in m.busy), "wide slots are miscounted")
    _holds(m.gil == sum(slot.gil for slot in m.busy), "slots that hold the GIL are miscounted")
    nested = sum(slot.gil for slot in m.busy if slot.job is not None and slot.job.nested)
    _holds(m.gil - nested <= 1, "two tasks that hold the GIL run here")
    _holds(len(m.pool) == m.cores, "slots were lost")
    _holds(all(m.slots.get(slot.id) is slot for slot in m.busy), "a slot that is gone is busy")
    filed = (*m.roomy, *m.idle_workers, *m.victims, *m.asked)
    _holds(all(m.workers.get(worker.id) is worker for worker in filed), "a dead worker is filed")
    pending = Counter(task.family for task in m.tasks.values() if task.state in OPEN)
    for family in m.families.values():
        _holds(family.pending == pending[family], f"{family.name} has {pending[family]} pending, not {family.pending}")


def _verify_fetching(m: Machine) -> None:
    counts: Counter[Task] = Counter()
    for number, waiters in m.fetching.items():
        _holds(number in m.tasks, f"task {number} is gone and being published")
        dep = m.tasks[number]
        _holds(not waiters or dep.workers, f"{dep} is to be published and nowhere")
        counts.update(list(waiters))
    _holds(counts == Counter(m.fetches), "who waits for how many publications is miscounted")
    fetching = {task for task in m.tasks.values() if task.state == FETCHING}
    _holds(fetching == set(m.fetches), "who waits for publications is wrong")


# ---- no lost wake-up


def _verify_nothing_waits_in_vain(m: Machine) -> None:
    for job in m.jobs.values():
        ready = [task for _, task in sorted(m.tasks.items()) if task.job is job and task.state == READY]
        # What stands in a heap where it does not belong any more is found when that heap's top has gone.
        filed = [task for task in ready if task.id in heap_of(m, task)]
        _holds(filed or not ready, f"job {job.id} has ready tasks, none of them where it belongs")
        if len(job.engaged) < job.limit:
            _verify_slots_are_used(m, job, filed)
        _verify_workers_are_used(m, job, filed)


def _verify_slots_are_used(m: Machine, job: Job, ready: list[Task]) -> None:
    pool = any(not slot.batch for slot in m.pool)
    caller = job.caller is not None and not job.caller.batch
    mine = [task for task in ready if _may_run_here(m, task)]
    if caller and job.nested:
        _holds(not mine, f"{mine} is ready and the caller of its nested job is idle")
    if job.lane == "inline":
        if caller:
            _holds(not mine, f"{mine} is ready and its caller is idle")
        return
    quick = [task for task in mine if heap_of(m, task) is job.quick]
    open_to_all = not m.wide or job.futures or job.lane != "auto"
    if ((caller and job.lane == "auto") or pool) and job.quick_slot is None and open_to_all:
        first_wide = next((task for task in mine if heap_of(m, task) is job.wide), None)
        _holds(not quick or (first_wide and first_wide.id < quick[0].id), f"{quick} are ready and a slot is idle")
    if pool and mine and not m.busy and not m.wide:
        _holds(job.quick_slot is not None, f"{mine} are ready and this process does nothing")
    if pool and open_to_all:
        wide = next((task for task in mine if heap_of(m, task) is job.wide), None)
        for task in mine:
            if wide is None or task.id < wide.id:
                held = heap_of(m, task) in (job.gil, job.away) and m.gil and not job.futures
                _holds(heap_of(m, task) is job.quick or held, f"{task} is ready and a slot is idle")


def _may_run_here(m: Machine, task: Task) -> bool:
    heap = heap_of(m, task)
    if heap is not task.job.away:
        return True
    if task.job.lane != "auto" or task.id in m.deaths or task is not min_of(m, heap):
        return False
    holders = {m.workers[number] for dep in task.deps if not dep.here for number in dep.workers or ()}
    return all(worker.load_s > 2.0 * m.ahead_s for worker in holders)


def min_of(m: Machine, heap: list[int]) -> Task | None:
    """The ready task with the lowest id among those of a heap."""
    ready = [number for number in heap if number in m.tasks and m.tasks[number].state == READY]
    return m.tasks[min(ready)] if ready else None


def _verify_workers_are_used(m: Machine, job: Job, ready: list[Task]) -> None:
    away = [task for task in ready if heap_of(m, task) is job.away]
    roomy = [worker for worker in m.workers.values() if worker.up and not worker.stopping and has_room(m, worker)]
    usable = [worker for worker in roomy if job.may_engage(worker)]
    first = min_of(m, job.away)
    if first is not None and first in away:  # the others wait for their turn
        usable = [worker for worker in usable if is_ready_for(m, worker, first) or not worker.queue]
    _holds(not (away and usable), f"{away[:3]} are ready and {len(usable)} workers have room")


def _verify_stealing(m: Machine) -> None:
    """No worker has nothing to do while another one has too much: one at a time is asked for half of it."""
    if any(worker.revoking for worker in m.workers.values()):
        return
    for victim in m.workers.values():
        if victim.stopping or victim in m.asked or len(victim.queue) < 2:
            continue
        (_, first_s), *rest = victim.queue.values()
        for task, _ in rest:
            alone = task.state == AWAY and task.waiting == 0 and victim.load_s - first_s >= STEAL_ABOVE_S
            thieves = [worker for worker in m.idle_workers if task.job.may_engage(worker)]
            # Of several jobs one may forbid what another allows; then the victim's turn comes with a later event.
            _holds(not (alone and thieves and len(m.jobs) <= 2), f"{task} waits and {len(thieves)} workers are idle")


def _verify_progress(m: Machine) -> None:
    """Whatever is open, something is on its way that will lead to an event."""
    running = any(slot.job is not None for slot in m.slots.values())
    moving = bool(
        running or m.opening or m.fetching or any(w.queue or not w.up or w.stopping for w in m.workers.values())
    )
    for job in m.jobs.values():
        coming = any(t.job is job and t.wanted and t.state == DONE and not t.here for t in m.tasks.values())
        _holds(moving or coming or not job.open, f"job {job.id} is stuck")
