"""A world for the decision core to rule: fake slots and fake workers that obey its commands, one small step at a time.

Everything that takes time in reality is a step of its own that somebody chooses: a slot begins a task, ends it,
reports; a worker hears an order, runs a task, its message arrives, it dies. So any interleaving that threads and
sockets could produce can be played, by Hypothesis or by a seeded random walk, without a thread or a socket.

Values are modelled: a task may only run if its inputs really are where the command said, and what it makes is a number
that depends on all its inputs, so a finished job can be compared with direct evaluation, and at the end nothing may be
left.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.machine import FUTURES, Machine

MODULUS = (1 << 61) - 1
Action = tuple[str, Callable[[], None]]

PROFILES = {
    # wall, cpu share alone, cpu share beside others, width
    "quick": (2e-6, 1.0, 1.0, 1.0),
    "free": (0.01, 1.0, 1.0, 1.0),
    "wide": (0.05, 1.0, 1.0, 3.0),
    "gil": (0.08, 1.0, 0.5, 1.0),
}
FAMILIES = tuple(PROFILES)


def combine(number: int, inputs: Iterable[int]) -> int:
    value = number + 1
    for x in inputs:
        value = (value * 1_000_003 + x) % MODULUS
    return value


@dataclass
class FakeJob:
    number: int
    base: int
    deps: list[tuple[int, ...]]
    families: list[str]
    outputs: list[int]
    literals: set[int]
    pinned: set[int]
    lane: str
    caller: int | None
    expected: list[int]
    blocked: FakeSlot | None = None  # the slot whose task waits for this nested job


@dataclass
class FakeFuture:
    task: int
    deps: tuple[int, ...]
    family: str
    expected: int
    outcome: str = ""


@dataclass
class FakeSlot:
    number: int
    job: int = -1
    pending: deque[int] = field(default_factory=deque)
    current: int | None = None
    spans: list[e.Span] = field(default_factory=list)
    busy: bool = False
    alone: bool = True
    stalled: bool = False
    blocked: bool = False
    waits_for: int | None = None  # the nested job that its task waits for
    awaits: int | None = None  # the future that its task waits for
    outer: FakeSlot | None = None  # of the caller of a nested job: the slot whose task that is


@dataclass
class FakeWorker:
    number: int
    up: bool = False
    stopping: bool = False
    inbox: deque[Any] = field(default_factory=deque)
    queue: deque[int] = field(default_factory=deque)
    values: dict[int, int] = field(default_factory=dict)
    outbox: deque[e.Event] = field(default_factory=deque)
    current: int | None = None
    result: int = 0  # of the current task: it has read its inputs
    promised: set[int] = field(default_factory=set)  # queued, or ordered to be

    def has_or_makes(self, task: int) -> bool:
        return task in self.values or task in self.promised

    def refused(self, task: int) -> bool:
        """Whether it has let go of a value that cannot leave it, and the machine has not heard yet."""
        return any(isinstance(event, e.TaskUnpicklable) and event.task == task for event in self.outbox)


class World:
    """The machine and everything around it.

    Args:
        lane: of futures.
        trouble: whether tasks raise, cannot be pickled, take their worker down, or workers fail to start.
    """

    def __init__(self, cores: int = 2, lane: str = "auto", trouble: bool = True, check: bool = True) -> None:
        self.machine = Machine(cores, lane=lane, check=check, max_deaths=3, idle_timeout_s=5.0)
        self.trouble = trouble
        self.now = 0.0
        self.jobs: dict[int, FakeJob] = {}
        self.futures: dict[int, FakeFuture] = {}  # those that somebody holds
        self.future_calls: dict[int, FakeFuture] = {}  # what the shell must remember of futures
        self.slots: dict[int, FakeSlot] = {}
        self.workers: dict[int, FakeWorker] = {}
        self.here: dict[int, int] = {}
        self.published: dict[int, tuple[int, int]] = {}  # task → value, and the worker that made it
        self.owner: dict[int, tuple[str, int]] = {}  # task → ("job", number) or ("future", number)
        self.errors: set[int] = set()  # tasks whose exception is in the shell
        self.next_job, self.next_task, self.next_caller = 1, 1, -1
        self.finished: list[int] = []
        self.failed: list[int] = []
        self.commands: list[c.Command] = []

    # ---- what the outside does

    def submit(
        self,
        deps: list[tuple[int, ...]],
        families: list[str],
        outputs: list[int],
        lane: str = "auto",
        limit: int | None = None,
        literals: Iterable[int] = (),
        pinned: Iterable[int] = (),
        inside: FakeSlot | None = None,
    ) -> int:
        """Submits a graph; ``inside``: from the task that this slot is at."""
        number, base, caller = self.next_job, self.next_task, self.next_caller
        self.next_job, self.next_task, self.next_caller = number + 1, base + len(deps), caller - 1
        expected: list[int] = []
        for index, its in enumerate(deps):
            expected.append(combine(base + index, (expected[d] for d in (() if index in set(literals) else its))))
        job = FakeJob(number, base, deps, families, outputs, set(literals), set(pinned), lane, caller, expected, inside)
        self.jobs[number] = job
        if inside is not None:
            inside.waits_for = number
        for index in range(len(deps)):
            self.owner[base + index] = ("job", number)
        for index in job.literals:
            self.here[base + index] = expected[index]
        self.slots[caller] = FakeSlot(caller, outer=inside)
        self.post(
            e.JobSubmitted(
                number, base, deps, families, outputs, job.literals, job.pinned, lane,
                limit or self.machine.cores, caller, inside is not None,
            )
        )  # fmt: skip
        return number

    def submit_future(self, deps: tuple[int, ...], family: str) -> int:
        task = self.next_task
        self.next_task += 1
        expected = combine(task, (self.futures[dep].expected for dep in deps))
        self.futures[task] = self.future_calls[task] = FakeFuture(task, deps, family, expected)
        self.owner[task] = ("future", task)
        self.post(e.FutureSubmitted(task, deps, family))
        return task

    def drop(self, tasks: Iterable[int]) -> None:
        tasks = tuple(tasks)
        for task in tasks:
            del self.futures[task]
        self.post(e.FuturesDropped(tasks))

    def cancel_job(self, number: int) -> None:
        job = self.jobs[number]
        self.post(e.JobCancelled(number))
        self._collect(job)

    def post(self, event: e.Event) -> list[c.Command]:
        """Hands an event to the machine and obeys."""
        self.now += 1e-3
        commands = self.commands = self.machine.handle(event, self.now)
        for command in commands:
            getattr(self, f"_obey_{type(command).__name__}")(command)
        return commands

    # ---- obeying

    def _obey_RunHere(self, command: c.RunHere) -> None:
        slot = self.slots.setdefault(command.slot, FakeSlot(command.slot))
        assert not slot.busy, f"slot {slot.number} is busy"
        assert command.tasks
        if command.job != FUTURES:
            assert all(self.owner[task] == ("job", command.job) for task in command.tasks)
        slot.busy, slot.job, slot.pending = True, command.job, deque(command.tasks)
        slot.alone = sum(other.busy for other in self.slots.values()) == 1

    def _obey_RunAt(self, command: c.RunAt) -> None:
        worker = self.workers[command.worker]
        assert worker.up
        assert not worker.stopping
        for task in command.tasks:
            assert not self._is_pinned(task), f"task {task} must not leave"
            for dep in self.deps_of(task):
                known = dep in self.here or dep in self.published or worker.has_or_makes(dep) or worker.refused(dep)
                assert known, f"task {task} is sent to worker {worker.number}, which cannot have its input {dep}"
            worker.promised.add(task)
        worker.inbox.append(command)

    def _obey_Publish(self, command: c.Publish) -> None:
        self._tell(command.worker, command)

    def _obey_Revoke(self, command: c.Revoke) -> None:
        assert command.tasks
        self._tell(command.worker, command)

    def _obey_Stop(self, command: c.Stop) -> None:
        worker = self.workers[command.worker]
        worker.stopping = True
        if command.kill or not worker.up:
            self.die(worker)
        else:
            worker.inbox.append(command)

    def _obey_Release(self, command: c.Release) -> None:
        assert command.tasks
        for task in command.tasks:
            kind, number = self.owner[task]
            if kind == "future":
                self.future_calls.pop(task, None)
            elif number in self.jobs and number in self.finished and self._is_output(task):
                continue
            self.here.pop(task, None)
            self.published.pop(task, None)
        # As the lane does: it knows what it has sent along with a task for want of an input that was to be made there.
        holding = [worker.number for worker in self.workers.values() if worker.values.keys() & command.tasks]
        for number in {*command.workers, *holding}:
            self._tell(number, command)

    def _obey_Launch(self, command: c.Launch) -> None:
        for number in command.workers:
            assert number not in self.workers
            self.workers[number] = FakeWorker(number)

    def _obey_FinishJob(self, command: c.FinishJob) -> None:
        job = self.jobs[command.job]
        for index in job.outputs:
            task = job.base + index
            value = self.here[task] if task in self.here else self.published[task][0]
            assert value == job.expected[index], f"task {task} has the wrong value"
        self.finished.append(job.number)
        self._end(job)

    def _obey_FailJob(self, command: c.FailJob) -> None:
        assert command.deaths or command.task in self.errors
        self.failed.append(command.job)
        self._end(self.jobs[command.job])

    def _end(self, job: FakeJob) -> None:
        if job.blocked is not None:
            job.blocked.waits_for = None

    def _obey_FinishFuture(self, command: c.FinishFuture) -> None:
        future = self.futures[command.task]
        assert not future.outcome
        task = future.task
        value = self.here[task] if task in self.here else self.published[task][0]
        assert value == future.expected
        future.outcome = "finished"

    def _obey_FailFuture(self, command: c.FailFuture) -> None:
        future = self.future_calls[command.task]
        assert not future.outcome
        assert command.deaths or command.cause in self.errors
        future.outcome = "failed"

    def _obey_CancelFuture(self, command: c.CancelFuture) -> None:
        future = self.future_calls[command.task]
        assert not future.outcome
        future.outcome = "cancelled"

    def _tell(self, number: int, command: c.Command) -> None:
        worker = self.workers.get(number)
        if worker is not None:
            worker.inbox.append(command)

    def _collect(self, job: FakeJob) -> None:
        """The caller has taken its values, or left: the shell forgets the job."""
        del self.jobs[job.number]
        self._end(job)
        for task in range(job.base, job.base + len(job.deps)):
            self.here.pop(task, None)
            self.published.pop(task, None)
            if self._is_output(task, job):
                for worker in self.workers.values():
                    if worker.up:
                        worker.inbox.append(c.Release([task], ()))

    def _is_output(self, task: int, job: FakeJob | None = None) -> bool:
        job = job or self.jobs.get(self.owner[task][1])
        return job is not None and task - job.base in job.outputs

    def _is_pinned(self, task: int) -> bool:
        kind, number = self.owner[task]
        return kind == "job" and number in self.jobs and task - self.jobs[number].base in self.jobs[number].pinned

    def deps_of(self, task: int) -> tuple[int, ...]:
        kind, number = self.owner[task]
        if kind == "future":
            return self.future_calls[task].deps
        job = self.jobs[number]
        return tuple(job.base + dep for dep in job.deps[task - job.base])

    def family_of(self, task: int) -> str:
        kind, number = self.owner[task]
        if kind == "future":
            return self.future_calls[task].family
        job = self.jobs[number]
        return job.families[task - job.base]

    def _is_known(self, task: int) -> bool:
        """Whether anybody still waits for a task to run."""
        kind, number = self.owner[task]
        if kind == "future":
            return task in self.future_calls and not self.future_calls[task].outcome
        return number in self.jobs and number not in self.finished and number not in self.failed

    def running_slots(self) -> list[FakeSlot]:
        """Those whose task might call compute itself now."""
        found = (slot for slot in self.slots.values() if slot.current is not None and not self._is_waiting(slot))
        return [slot for slot in found if slot.current is not None and self._is_known(slot.current)]

    # ---- what may happen next

    def actions(self) -> list[Action]:
        """Everything that may happen now, in a fixed order. Empty only if nothing is under way."""
        found: list[Action] = []
        for slot in list(self.slots.values()):
            found += self._slot_actions(slot)
        for worker in list(self.workers.values()):
            found += self._worker_actions(worker)
        for number in list(self.jobs):
            if number in self.finished or number in self.failed:
                found.append(("collect", lambda n=number: self._collect(self.jobs[n])))  # type: ignore[misc]
        return found

    def troubles(self) -> list[Action]:
        """What may go wrong now."""
        found: list[Action] = []
        for slot in self.slots.values():
            if slot.current is not None and not self._is_waiting(slot) and self._is_known(slot.current):
                found.append(("raise here", lambda s=slot: self._raise_here(s)))  # type: ignore[misc]
        for worker in self.workers.values():
            found.append(("die", lambda w=worker: self.die(w)))  # type: ignore[misc]
            if worker.current is not None and self._is_known(worker.current):
                found.append(("raise away", lambda w=worker: self._raise_away(w, e.TaskRaised)))  # type: ignore[misc]
                found.append(("unpicklable", lambda w=worker: self._hide(w)))  # type: ignore[misc]
            if worker.inbox and isinstance(worker.inbox[0], c.Publish):
                found.append(("unpublishable", lambda w=worker: self._refuse(w)))  # type: ignore[misc]
            if worker.inbox and isinstance(worker.inbox[0], c.RunAt):
                found.append(("unsendable", lambda w=worker: self._unsendable(w)))  # type: ignore[misc]
        return found

    def _slot_actions(self, slot: FakeSlot) -> list[Action]:
        if not slot.busy or self._is_waiting(slot):
            return [("stall", lambda: self._stall(slot))] if slot.busy and not slot.stalled else []
        if slot.current is not None:
            found: list[Action] = [("end", lambda: self._end_task(slot))]
            if not slot.stalled:
                found.append(("stall", lambda: self._stall(slot)))
            return found
        found = [("report", lambda: self._report(slot))] if slot.spans or not slot.pending or slot.stalled else []
        if slot.pending:
            found.append(("begin", lambda: self._begin(slot)))
        return found

    def _begin(self, slot: FakeSlot) -> None:
        slot.current = slot.pending.popleft()
        if self._is_known(slot.current):
            for dep in self.deps_of(slot.current):
                assert dep in self.here or dep in self.published, f"task {slot.current} runs here without {dep}"

    def _end_task(self, slot: FakeSlot) -> None:
        task, slot.current = slot.current, None
        assert task is not None
        if not self._is_known(task):
            return
        here, published = self.here, self.published
        here[task] = self._compute(task, lambda dep: here[dep] if dep in here else published[dep][0])
        slot.spans.append(self._span(task, slot.alone))

    def _compute(self, task: int, value_of: Callable[[int], int]) -> int:
        return combine(task, (value_of(dep) for dep in self.deps_of(task)))

    def _span(self, task: int, alone: bool) -> e.Span:
        wall, alone_share, shared_share, width = PROFILES[self.family_of(task)]
        if wall < 1e-4:
            return e.Span(task, self.now, wall, -1.0, -1.0, -1, 0.0)
        return e.Span(task, self.now, wall, wall * (alone_share if alone else shared_share), width, 100, 0.0)

    def _report(self, slot: FakeSlot) -> None:
        event = e.SlotRan(slot.number, slot.spans, list(slot.pending))
        slot.spans, slot.pending, slot.busy, slot.stalled = [], deque(), False, False
        if slot.blocked:
            del self.slots[slot.number]
        self.post(event)

    def _stall(self, slot: FakeSlot) -> None:
        returned, slot.pending, slot.stalled = list(slot.pending), deque(), True
        self.post(e.SlotStalled(slot.number, returned))

    def await_future(self, slot: FakeSlot, task: int) -> None:
        """The task that a slot is at waits for a future; if the thread is one of the pool, its slot is blocked."""
        slot.awaits = task
        while slot.outer is not None:
            slot = slot.outer
        if slot.number > 0 and not slot.blocked:
            returned, slot.pending, slot.blocked = list(slot.pending), deque(), True
            self.post(e.SlotBlocked(slot.number, returned))

    def _is_waiting(self, slot: FakeSlot) -> bool:
        if slot.awaits is not None and (slot.awaits not in self.futures or self.futures[slot.awaits].outcome):
            slot.awaits = None
        return slot.awaits is not None or slot.waits_for is not None

    def _raise_here(self, slot: FakeSlot) -> None:
        task, slot.current = slot.current, None
        assert task is not None
        self.errors.add(task)
        self.post(e.TaskRaised(task, e.HERE))
        self._report(slot)

    # ---- workers

    def _worker_actions(self, worker: FakeWorker) -> list[Action]:
        if not worker.up:
            return [("start", lambda: self._start(worker))]
        found: list[Action] = []
        if worker.outbox:
            found.append(("arrive", lambda: self._arrive(worker)))
        if worker.inbox:
            found.append(("hear", lambda: self._hear(worker)))
        if worker.current is not None:
            found.append(("run", lambda: self._run_away(worker)))
        elif worker.queue:
            found.append(("begin away", lambda: self._begin_away(worker)))
        return found

    def _start(self, worker: FakeWorker) -> None:
        worker.up = True
        self.post(e.WorkerStarted(worker.number))

    def die(self, worker: FakeWorker) -> None:
        del self.workers[worker.number]
        self.post(e.WorkerDied(worker.number, worker.current, worker.stopping))

    def _arrive(self, worker: FakeWorker) -> None:
        event = worker.outbox.popleft()
        if isinstance(event, e.WorkerRan):
            for task in event.arrived:
                if self._is_known(task):
                    self.here[task] = worker.values[task] if task in worker.values else self._expected(task)
        elif isinstance(event, e.ValuePublished) and self._is_known_or_wanted(event.task):
            self.published[event.task] = (self._expected(event.task), worker.number)
        self.post(event)

    def _is_known_or_wanted(self, task: int) -> bool:
        kind, number = self.owner[task]
        return task in self.future_calls if kind == "future" else number in self.jobs

    def _expected(self, task: int) -> int:
        kind, number = self.owner[task]
        if kind == "future":
            return self.future_calls[task].expected
        job = self.jobs[number]
        return job.expected[task - job.base]

    def _hear(self, worker: FakeWorker) -> None:
        command = worker.inbox.popleft()
        if isinstance(command, c.RunAt):
            for task in command.tasks:
                self._send(worker, task)
        elif isinstance(command, c.Revoke):
            given = [task for task in command.tasks if task in worker.queue]
            for task in given:
                worker.queue.remove(task)
                worker.promised.discard(task)
            worker.outbox.append(e.TasksRevoked(worker.number, given))
        elif isinstance(command, c.Release):
            for task in command.tasks:
                worker.values.pop(task, None)
        elif isinstance(command, c.Publish):
            if command.task in worker.values:
                worker.outbox.append(e.ValuePublished(command.task, worker.number))
        elif isinstance(command, c.Stop):
            self.die(worker)

    def _send(self, worker: FakeWorker, task: int) -> None:
        """As the lane does: inputs go with the task unless they are there; a task of no use any more does not go."""
        if not self._is_known(task):
            self._give_back(worker, task)
            return
        for dep in self.deps_of(task):
            if dep not in worker.values and dep not in worker.queue and dep != worker.current:
                if dep in self.here or dep in self.published:
                    worker.values[dep] = self._expected(dep)
                else:
                    self._give_back(worker, task)
                    return
        worker.queue.append(task)

    def _give_back(self, worker: FakeWorker, task: int) -> None:
        worker.promised.discard(task)
        worker.outbox.append(e.TasksRevoked(worker.number, [task]))

    def _begin_away(self, worker: FakeWorker) -> None:
        task = worker.queue.popleft()
        if self._is_known(task) and any(dep not in worker.values for dep in self.deps_of(task)):
            assert self.trouble, f"task {task} has come to worker {worker.number} without its inputs"
            self._give_back(worker, task)
            return
        worker.current = task
        worker.result = self._compute(task, worker.values.__getitem__) if self._is_known(task) else 0

    def _run_away(self, worker: FakeWorker) -> None:
        task, worker.current = worker.current, None
        assert task is not None
        worker.promised.discard(task)
        if not self._is_known(task):
            worker.outbox.append(e.WorkerRan(worker.number, [e.Span(task, self.now, 1e-3, 1e-3, 1.0, 9, 0.0)], ()))
            worker.values[task] = 0
            return
        worker.values[task] = worker.result
        kind, _ = self.owner[task]
        large = task % 3 == 0
        arrived = () if large else (task,)
        worker.outbox.append(e.WorkerRan(worker.number, [self._span(task, True)], arrived))
        if large and (kind == "future" or self._is_output(task)):
            worker.outbox.append(e.ValuePublished(task, worker.number))

    def _raise_away(self, worker: FakeWorker, event: type) -> None:
        task, worker.current = worker.current, None
        assert task is not None
        worker.promised.discard(task)
        self.errors.add(task)
        worker.outbox.append(event(task, worker.number))

    def _hide(self, worker: FakeWorker) -> None:
        self._raise_away(worker, e.TaskUnpicklable)

    def _refuse(self, worker: FakeWorker) -> None:
        command = worker.inbox.popleft()
        if command.task in worker.values:
            del worker.values[command.task]
            self.errors.add(command.task)
            worker.outbox.append(e.TaskUnpicklable(command.task, worker.number, must_stay=command.task % 2 == 0))

    def _unsendable(self, worker: FakeWorker) -> None:
        """The first task of what is to be sent cannot be pickled."""
        command = worker.inbox.popleft()
        first = command.tasks[0]
        worker.promised.discard(first)
        if self._is_known(first):
            self.errors.add(first)
            event = e.TaskUnpicklable(first, worker.number, must_stay=first % 2 == 0)
            if command.tasks[1:]:
                worker.inbox.appendleft(c.RunAt(command.worker, command.tasks[1:]))
            self.post(event)
        else:
            worker.inbox.appendleft(command)

    # ---- driving

    def run(self, seed: int | None = None) -> None:
        """Lets everything happen that is under way, in order of the list or as a seeded random walk."""
        rng = random.Random(seed)
        for _ in range(2_000_000):
            actions = self.actions()
            if not actions:
                return
            (actions[0] if seed is None else rng.choice(actions))[1]()
        raise AssertionError("this never ends")

    def finish(self, seed: int | None = None) -> None:
        """Runs everything to its end and checks that nothing is left."""
        self.run(seed)
        assert not self.jobs, f"jobs {list(self.jobs)} never end"
        for future in self.futures.values():
            assert future.outcome, f"future {future.task} never ends"
        if self.futures:
            self.drop(list(self.futures))
        self.run(seed)
        machine = self.machine
        left = {
            "tasks": machine.tasks, "fetching": machine.fetching, "fetches": machine.fetches, "deaths": machine.deaths,
            "causes": machine.causes, "here": self.here, "published": self.published, "calls": self.future_calls,
            "values": {w.number: w.values for w in self.workers.values() if w.values},
            "holds": {w.id: w.holds for w in machine.workers.values() if w.holds},
            "queues": {w.id: w.queue for w in machine.workers.values() if w.queue},
            "spread": machine.jobs[FUTURES].spread,
        }  # fmt: skip
        assert not {name: what for name, what in left.items() if what}
        self.post(e.WorkersIdled())
        self.now += 100.0
        self.post(e.WorkersIdled())
        self.run(seed)
        assert not machine.workers
