"""The decision core: ``handle(event, now)`` returns commands.

Pure: no clock, no thread, no I/O, no randomness; the same events give the same commands. What lives here is what follows
from an event: which tasks are ready, which values can go, what must be made again. Where a ready task runs is decided in
``placement``; what is learned about families in ``policy``. ``check`` states what must hold after every event.

The machine is not thread-safe: its shell calls it under one lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from heapq import heappush
from typing import Any

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched import placement
from headrace.sched.policy import QUICK, Family
from headrace.sched.state import (
    AWAY,
    CANCELLED,
    DONE,
    FAILED,
    FETCHING,
    HERE_QUEUED,
    READY,
    WAITING,
    Job,
    Slot,
    Task,
    Worker,
)

FUTURES = 0
"""The number of the job that all futures belong to."""
STORY_LENGTH = 2_000


class Machine:
    """All that is known, and what to do next.

    Args:
        cores: how many tasks may run at once; also the number of pool slots, whose ids are 1 to ``cores``.
        lane: the lane of futures.
        inline_below_s, ahead_s, max_deaths, idle_timeout_s: see ``headrace.config.Settings``.
    """

    def __init__(
        self,
        cores: int,
        lane: str = "auto",
        inline_below_s: float = 100e-6,
        ahead_s: float = 0.03,
        max_deaths: int = 3,
        idle_timeout_s: float = 60.0,
    ) -> None:
        self.cores = cores
        self.inline_below_s = inline_below_s
        self.ahead_s = ahead_s
        self.max_deaths = max_deaths
        self.idle_timeout_s = idle_timeout_s
        self.now = 0.0
        self.tasks: dict[int, Task] = {}
        self.jobs: dict[int, Job] = {FUTURES: Job(FUTURES, lane, cores, None, False, futures=True)}
        self.families: dict[Hashable, Family] = {}
        self.pool = [Slot(number) for number in range(1, cores + 1)]
        self.slots: dict[int, Slot] = {slot.id: slot for slot in self.pool}
        self.next_slot = 1 << 20  # replacements; callers' ids are the shell's and negative
        self.busy: set[Slot] = set()
        self.workers: dict[int, Worker] = {}
        self.roomy: dict[Worker, None] = {}  # workers that are up and have room in their queue
        self.failed_starts = 0  # workers in a row that died before they were up
        self.next_worker = 1
        self.fetching: dict[int, list[Task]] = {}  # task whose value is being published → tasks that wait for it
        self.out = []
        self.log: deque[tuple[float, Any, Sequence[c.Command]]] = deque(maxlen=STORY_LENGTH)
        self._released: list[int] = []

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """Takes in what happened at ``now`` (seconds, never going back) and returns what to do, in order."""
        self.now = now
        self.out: list[c.Command] = []
        out = self.out
        _HANDLERS[type(event)](self, event)
        placement.place(self)
        if self._released:
            # First: what a batch reads next must find memory to be free, and nobody waits for a release.
            out.insert(0, c.Release(self._released, ()))
            self._released = []
        self.log.append((now, event, out))
        return out

    def story(self, task: int) -> list[tuple[float, Any, Sequence[c.Command]]]:
        """The log's entries that name a task: what became of it, and why. Bounded: the oldest are forgotten."""
        return [entry for entry in self.log if _mentions(entry[1], task) or any(_mentions(x, task) for x in entry[2])]

    # ---- jobs and futures

    def _job_submitted(self, event: e.JobSubmitted) -> None:
        caller = None
        if event.caller is not None:
            caller = self.slots[event.caller] = Slot(event.caller, caller=True)
        job = Job(event.job, event.lane, max(1, event.limit), caller, event.nested)
        self.jobs[job.id] = job
        families, tasks, literals, new = self.families, self.tasks, event.literals, job.tasks
        number = event.base
        for index, (deps, name) in enumerate(zip(event.deps, event.families, strict=True)):
            family = families.get(name)
            if family is None:
                family = families[name] = Family(name)
            task = Task(number, job, tuple([new[dep] for dep in deps]), family)
            if literals and index in literals:
                task.state = DONE
                task.here = True
                task.consumers = 1  # never released while the job lives: there is no call that could make it again
            else:
                family.pending += 1
                for dep in task.deps:
                    dep.dependents.append(task)
                    dep.consumers += 1
                    if dep.state == DONE:
                        task.waiting -= 1
            new.append(task)
            tasks[number] = task
            number += 1
        for index in event.pinned:
            new[index].pinned = True
        for index in event.outputs:
            task = new[index]
            if not task.wanted:
                task.wanted = True
                if not task.here:
                    job.open += 1
        for task in new:
            if task.waiting == 0 and task.state == WAITING:
                self.make_ready(task)
        if job.open == 0:
            self._finish(job)

    def _future_submitted(self, event: e.FutureSubmitted) -> None:
        job = self.jobs[FUTURES]
        family = self.families.get(event.family)
        if family is None:
            family = self.families[event.family] = Family(event.family)
        task = Task(event.task, job, tuple([self.tasks[dep] for dep in event.deps]), family)
        task.wanted = True
        job.open += 1
        self.tasks[task.id] = task
        family.pending += 1
        for dep in task.deps:
            if dep.state in (FAILED, CANCELLED):
                task.state = dep.state
                job.open -= 1
                family.pending -= 1
                self.out.append(c.FailFuture(task.id, dep.id) if dep.state == FAILED else c.CancelFuture(task.id))
                return
        for dep in task.deps:
            dep.dependents.append(task)
            dep.consumers += 1
            if dep.state == DONE:
                task.waiting -= 1
        if task.waiting == 0:
            self.make_ready(task)

    def _futures_dropped(self, event: e.FuturesDropped) -> None:
        for number in event.tasks:
            task = self.tasks.get(number)
            if task is None or not task.wanted:
                continue
            task.wanted = False
            if not task.here and task.state not in (FAILED, CANCELLED):
                task.job.open -= 1
            if task.state == DONE:
                self._release_if_unneeded(task)
            elif task.state in (FAILED, CANCELLED):
                self._forget(task)

    def _tasks_cancelled(self, event: e.TasksCancelled) -> None:
        for number in event.tasks:
            task = self.tasks.get(number)
            if task is not None and task.state in (WAITING, READY, FETCHING):
                self._fail_future(task, CANCELLED, lambda t: c.CancelFuture(t.id))

    def _job_cancelled(self, event: e.JobCancelled) -> None:
        job = self.jobs.get(event.job)
        if job is None:
            return
        for worker in list(self.workers.values()):
            head = next(iter(worker.queue), None)
            task = None if head is None else self.tasks.get(head)
            if task is not None and task.job is job:
                self.stop(worker, kill=True)
        self._close(job)

    def _finish(self, job: Job) -> None:
        self.out.append(c.FinishJob(job.id))
        self._close(job)

    def _fail(self, task: Task, deaths: int = 0) -> None:
        if task.job.futures:
            self._fail_future(task, FAILED, lambda t: c.FailFuture(t.id, task.id, deaths))
        else:
            self.out.append(c.FailJob(task.job.id, task.id, deaths))
            self._close(task.job)

    def _fail_future(self, first: Task, state: int, command: Callable[[Task], c.Command]) -> None:
        """Fails or cancels a future and all that depend on it."""
        stack = [first]
        while stack:
            task = stack.pop()
            if task.state in (DONE, FAILED, CANCELLED):
                continue
            task.state = state
            task.family.pending -= 1
            self.out.append(command(task))
            stack.extend(task.dependents)
            for dep in task.deps:
                dep.consumers -= 1
                if dep.state == DONE:
                    self._release_if_unneeded(dep)
            if task.wanted:
                task.job.open -= 1
            else:
                self._forget(task)

    def _close(self, job: Job) -> None:
        """The job is over, well or not: forget its tasks; what still runs is ignored when it reports."""
        del self.jobs[job.id]
        if job.caller is not None:
            del self.slots[job.caller.id]
            self.busy.discard(job.caller)
        for worker in self.workers.values():
            queued = [number for number in worker.queue if (t := self.tasks.get(number)) is not None and t.job is job]
            if queued and not worker.stopping:
                self.out.append(c.Revoke(worker.id, queued))
        for task in job.spread:
            self._release_at_workers(task)
        job.spread = set()
        tasks = self.tasks
        for task in job.tasks:
            if task.state != DONE:
                task.family.pending -= 1
            task.dependents = []  # breaks the reference cycles, so that memory goes at once, not at the next collection
            del tasks[task.id]
            self.fetching.pop(task.id, None)
        job.tasks = []
        self._retire_slots(job)

    def _retire_slots(self, job: Job) -> None:
        """A thread cannot be stopped: pool slots that still run tasks of a closed job are replaced by fresh ones."""
        for position, slot in enumerate(self.pool):
            if slot.batch and slot.job is job:
                self.busy.discard(slot)
                del self.slots[slot.id]
                self.pool[position] = fresh = Slot(self.next_slot)
                self.slots[fresh.id] = fresh
                self.next_slot += 1

    # ---- what ran in this process

    def _slot_ran(self, event: e.SlotRan) -> None:
        slot = self.slots.get(event.slot)
        neighbours = max(1, len(self.busy) - 1)
        if slot is not None:
            self._leave(slot)
        self._learn(event.spans, slot is not None and slot.solo, neighbours)
        tasks = self.tasks
        for span in event.spans:
            task = tasks.get(span[0])
            if task is not None and task.state == HERE_QUEUED:
                task.size = span[5]
                task.here = True
                self._done(task)
        self._take_back(event.returned)
        if slot is not None:
            slot.solo = False
            placement.place_slot(self, slot)

    def _slot_stalled(self, event: e.SlotStalled) -> None:
        slot = self.slots.get(event.slot)
        if slot is None or not slot.batch:
            return
        returned = set(event.returned)
        stuck = [task for task in slot.batch if task.id not in returned and task.state == HERE_QUEUED]
        for task in stuck:
            task.family.stalled()
        slot.batch = stuck
        if slot.job is not None and slot.job.quick_slot is slot:
            slot.job.quick_slot = None
        self._take_back(event.returned)

    def _learn(self, spans: Sequence[e.Span], solo: bool, neighbours: int) -> None:
        """Feeds the families; a run of quick tasks of one family counts as one sample of their mean."""
        tasks, i, n = self.tasks, 0, len(spans)
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
            family.ran_here(span, solo, neighbours, self.inline_below_s)

    def _take_back(self, returned: Iterable[int]) -> None:
        for number in returned:
            task = self.tasks.get(number)
            if task is not None and task.state in (HERE_QUEUED, AWAY):
                self._unplace(task)

    def _unplace(self, task: Task) -> None:
        task.state = WAITING
        if task.waiting == 0:
            self.make_ready(task)

    def _leave(self, slot: Slot) -> None:
        self.busy.discard(slot)
        slot.batch = []
        slot.wide = slot.gil = False
        if slot.job is not None:
            slot.job.engaged.discard(slot)
            if slot.job.quick_slot is slot:
                slot.job.quick_slot = None
            slot.job = None

    # ---- what happened at workers

    def _worker_started(self, event: e.WorkerStarted) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None and not worker.stopping:
            worker.up = True
            worker.idle_since = self.now
            self.failed_starts = 0
            self.roomy[worker] = None

    def _worker_ran(self, event: e.WorkerRan) -> None:
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        worker.revoking = False
        arrived = event.arrived if isinstance(event.arrived, (set, frozenset)) else set(event.arrived)
        orphans = []
        for span in event.spans:
            self._dequeue(worker, span.task)
            task = self.tasks.get(span.task)
            if task is None or task.state != AWAY:
                orphans.append(span.task)
                continue
            task.family.ran_away(span, self.inline_below_s)
            task.size = span.size_bytes
            task.here = span.task in arrived
            self.copied(task, worker)
            self._done(task)
        if orphans:
            self.out.append(c.Release(orphans, (worker.id,)))

    def _value_published(self, event: e.ValuePublished) -> None:
        waiters = self.fetching.pop(event.task, ())
        task = self.tasks.get(event.task)
        if task is None or task.released:
            self.out.append(c.Release([event.task], (event.worker,)))
            return
        if task.here or task.state != DONE:
            return
        task.here = True
        for waiter in waiters:
            if waiter.state == FETCHING:
                waiter.fetches -= 1
                if waiter.fetches <= 0:
                    self.make_ready(waiter)
        if task.wanted:
            self._arrived(task)

    def _tasks_revoked(self, event: e.TasksRevoked) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            worker.revoking = not event.tasks  # it had started them all: not asked again before it has made progress
            for number in event.tasks:
                self._dequeue(worker, number)
        self._take_back(event.tasks)

    def _task_raised(self, event: e.TaskRaised) -> None:
        if event.place in self.workers:
            self._dequeue(self.workers[event.place], event.task)
        task = self.tasks.get(event.task)
        if task is not None and task.state in (HERE_QUEUED, AWAY):
            self._fail(task)

    def _task_unpicklable(self, event: e.TaskUnpicklable) -> None:
        worker = self.workers.get(event.worker)
        if worker is not None:
            self._dequeue(worker, event.task)
        task = self.tasks.get(event.task)
        if task is None or task.released or (task.state == DONE and task.here):
            return
        if task.job.lane == "processes" and not event.must_stay:
            self._fail(task)
            return
        task.pinned = True
        task.family.movable = False
        if task.state == DONE:
            self._lose([task])
        elif task.state == AWAY:
            self._unplace(task)

    def _worker_died(self, event: e.WorkerDied) -> None:
        worker = self.workers.pop(event.worker, None)
        if worker is None:
            return
        self.roomy.pop(worker, None)
        if not worker.up and not event.expected:
            self.failed_starts += 1
        for job in self.jobs.values():
            job.engaged.discard(worker)
        for task in worker.holds:
            assert task.workers is not None
            task.workers.discard(worker.id)
        queued = [t for n in worker.queue if (t := self.tasks.get(n)) is not None and t.state == AWAY]
        for task in queued:
            task.state = WAITING
        lost = [t for t in worker.holds if t.id in self.tasks and t.state == DONE and not (t.here or t.workers or t.released)]
        self._lose(lost)
        for task in queued:
            if task.state == WAITING and task.waiting == 0:
                self.make_ready(task)
        culprit = None if event.expected or event.running is None else self.tasks.get(event.running)
        if culprit is not None and culprit in queued:
            culprit.deaths += 1
            if culprit.deaths >= self.max_deaths:
                self._fail(culprit, culprit.deaths)

    def _workers_idled(self, event: e.WorkersIdled) -> None:
        for worker in list(self.workers.values()):
            idle = worker.up and not worker.queue and not worker.holds and not worker.stopping
            if idle and self.now - worker.idle_since >= self.idle_timeout_s:
                self.stop(worker, kill=False)

    def stop(self, worker: Worker, kill: bool) -> None:
        worker.stopping = True
        self.roomy.pop(worker, None)
        self.out.append(c.Stop(worker.id, kill))

    def _dequeue(self, worker: Worker, number: int) -> None:
        expected = worker.queue.pop(number, None)
        if expected is None:
            return
        worker.load_s -= expected
        if not worker.queue:
            worker.load_s = 0.0
            worker.idle_since = self.now
            for job in self.jobs.values():
                job.engaged.discard(worker)
        if placement.has_room(self, worker) and not worker.stopping:
            self.roomy[worker] = None

    # ---- the life of a task and of its value

    def make_ready(self, task: Task) -> None:
        """Everything the task needs is there: it may be placed. Its id is its priority."""
        task.state = READY
        heappush(placement.heap_of(self, task), task.id)

    def _done(self, task: Task) -> None:
        task.state = DONE
        task.family.pending -= 1
        for dependent in task.dependents:
            dependent.waiting -= 1
            if dependent.waiting == 0 and dependent.state == WAITING:
                self.make_ready(dependent)
        for dep in task.deps:
            dep.consumers -= 1
            if dep.consumers == 0 and not dep.wanted:
                self._release(dep)
        if task.wanted:
            if task.here:
                self._arrived(task)
        elif task.consumers == 0:
            self._release(task)

    def _arrived(self, task: Task) -> None:
        job = task.job
        job.open -= 1
        if job.futures:
            self.out.append(c.FinishFuture(task.id))
            for dep in task.deps:
                if len(dep.dependents) > 2 * dep.consumers + 16:
                    dep.dependents = [t for t in dep.dependents if t.state != DONE]
            task.deps = ()  # it cannot be lost any more: without lineage, a long chain of futures frees its past
        elif job.open == 0:
            self._finish(job)

    def _release_if_unneeded(self, task: Task) -> None:
        if task.consumers == 0 and not task.wanted:
            self._release(task)

    def _release(self, task: Task) -> None:
        """Nobody needs the value any more."""
        if task.released:
            return
        task.released = True
        if task.workers:
            self._release_at_workers(task)
            task.job.spread.discard(task)
        else:
            self._released.append(task.id)
        task.here = False
        if task.job.futures:
            self._forget(task)

    def _release_at_workers(self, task: Task) -> None:
        places = tuple(sorted(task.workers or ()))
        for number in places:
            self.workers[number].holds.discard(task)
        task.workers = None
        self.out.append(c.Release([task.id], places))

    def _forget(self, task: Task) -> None:
        self.tasks.pop(task.id, None)
        task.dependents = []

    def copied(self, task: Task, worker: Worker) -> None:
        """A worker has, or is being sent, the value of a task."""
        if task.workers is None:
            task.workers = set()
        if worker.id not in task.workers:
            task.workers.add(worker.id)
            worker.holds.add(task)
            task.job.spread.add(task)

    def _lose(self, lost: Iterable[Task]) -> None:
        """These values are gone but needed: run their tasks again, and whatever those need that is gone as well."""
        stack = list(lost)
        ready = []
        while stack:
            task = stack.pop()
            if task.state != DONE or task.here or task.workers:
                continue
            task.state = WAITING
            task.released = False
            task.family.pending += 1
            task.waiting = 0
            for dep in task.deps:
                dep.consumers += 1
                if dep.state == DONE and not dep.here and not dep.workers:
                    stack.append(dep)
                elif dep.state != DONE:
                    task.waiting += 1
            for dependent in task.dependents:
                if dependent.state in (WAITING, READY, FETCHING):
                    dependent.state = WAITING
                    dependent.waiting += 1
            self.fetching.pop(task.id, None)
            ready.append(task)
        for task in ready:
            if task.waiting == 0 and task.state == WAITING:
                self.make_ready(task)


def _mentions(record: Any, task: int) -> bool:
    for name in record.__slots__:
        value = getattr(record, name)
        if name in ("task", "running", "cause") and value == task:
            return True
        if name in ("tasks", "returned", "arrived") and task in value:
            return True
        if name == "spans" and any(span.task == task for span in value):
            return True
        if name == "base" and value <= task < value + len(record.deps):
            return True
    return False


_HANDLERS: dict[type, Callable[[Machine, Any], None]] = {
    e.JobSubmitted: Machine._job_submitted,
    e.FutureSubmitted: Machine._future_submitted,
    e.FuturesDropped: Machine._futures_dropped,
    e.TasksCancelled: Machine._tasks_cancelled,
    e.JobCancelled: Machine._job_cancelled,
    e.SlotRan: Machine._slot_ran,
    e.SlotStalled: Machine._slot_stalled,
    e.WorkerStarted: Machine._worker_started,
    e.WorkerRan: Machine._worker_ran,
    e.ValuePublished: Machine._value_published,
    e.TasksRevoked: Machine._tasks_revoked,
    e.TaskRaised: Machine._task_raised,
    e.TaskUnpicklable: Machine._task_unpicklable,
    e.WorkerDied: Machine._worker_died,
    e.WorkersIdled: Machine._workers_idled,
}
