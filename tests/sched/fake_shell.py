"""What stands between the decision core and its world in a simulation: it obeys commands, and knows where values are.

Slots and workers are records here; what they do next is for :mod:`simulation` to choose.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.machine import FUTURES, Machine

MODULUS = (1 << 61) - 1
PROFILES = {
    # wall, cpu share alone, cpu share beside others, width
    "quick": (2e-6, 1.0, 1.0, 1.0),
    "free": (0.01, 1.0, 1.0, 1.0),
    "wide": (0.05, 1.0, 1.0, 3.0),
    "gil": (0.08, 1.0, 0.5, 1.0),
    "other gil": (0.07, 1.0, 0.5, 1.0),  # needs other modules: workers that are up are to be prepared for it
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
    stage: FakeStage | None = None  # what it steps
    outer: FakeSlot | None = None  # of the caller of a nested job: the slot whose task that is


@dataclass
class FakeStage:
    """A generator that a task has returned, and the slot whose thread steps it, if that is one of the pool."""

    task: int
    slot: FakeSlot | None
    opened: bool = False


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


class FakeShell:
    """A machine, and whoever gives it work and carries out what it commands.

    Args:
        lane: of futures.
        trouble: whether tasks raise, cannot be pickled, take their worker down, or workers fail to start.
    """

    def __init__(self, cores: int = 2, lane: str = "auto", trouble: bool = True, check: bool = True) -> None:
        self.machine = Machine(cores, lane=lane, check=check, max_deaths=3, idle_timeout_s=5.0)
        self.trouble = trouble
        self.streams = True  # whether tasks may turn out to make streams
        self.now = 0.0
        self.jobs: dict[int, FakeJob] = {}
        self.futures: dict[int, FakeFuture] = {}  # those that somebody holds
        self.future_calls: dict[int, FakeFuture] = {}  # what the shell must remember of futures
        self.slots: dict[int, FakeSlot] = {}
        self.stages: list[FakeStage] = []
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

    def _obey_Expect(self, command: c.Expect) -> None:
        assert command.readers
        for reader in command.readers:
            assert not command.coming or command.task in self.deps_of(reader)

    def _obey_Launch(self, command: c.Launch) -> None:
        for number in command.workers:
            assert number not in self.workers
            self.workers[number] = FakeWorker(number)

    def _obey_Prepare(self, command: c.Prepare) -> None:
        worker = self.workers[command.worker]
        assert worker.up
        assert not worker.queue
        assert worker.current is None
        worker.up = False

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

    def _is_known_or_wanted(self, task: int) -> bool:
        kind, number = self.owner[task]
        return task in self.future_calls if kind == "future" else number in self.jobs

    def _expected(self, task: int) -> int:
        kind, number = self.owner[task]
        if kind == "future":
            return self.future_calls[task].expected
        job = self.jobs[number]
        return job.expected[task - job.base]

    def die(self, worker: FakeWorker) -> None:
        del self.workers[worker.number]
        self.post(e.WorkerDied(worker.number, worker.current, worker.stopping))
