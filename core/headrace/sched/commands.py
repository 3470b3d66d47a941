"""What to do: the only output of the decision core. Plain data, imperative, no I/O.

Order matters per worker: commands for one worker must reach it in the order in which the core gave them.

Never changed. Named tuples, as events are: the classes of frozen dataclasses were a third of what it cost to import
Headrace. Two of different kinds may be equal: who compares them must look at their types as well. The most frequent
ones are slotted classes, which are quicker to read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


@dataclass(slots=True)
class RunHere:
    """Let a slot run these tasks one after the other; it ends the batch early once ``budget_s`` is used up.

    When one of them takes longer than ``patience_s``, what waits behind it is to be given back (``SlotStalled``); 0 if
    nothing does. ``measured``: what their families are is not known for good: take their CPU times.
    """

    slot: int
    job: int
    tasks: list[int]
    budget_s: float
    patience_s: float
    measured: bool


@dataclass(slots=True)
class RunAt:
    """Append tasks of one job to a worker's queue. Every dependency is HERE, published, or at that worker by then."""

    worker: int
    tasks: list[int]


class Publish(NamedTuple):
    """Have a worker put the value of a task it holds into shared memory; answered by ``ValuePublished``."""

    worker: int
    task: int


class Revoke(NamedTuple):
    """Ask a worker to give back those of these tasks that it has not started; answered by ``TasksRevoked``."""

    worker: int
    tasks: list[int]


@dataclass(slots=True)
class Release:
    """Forget values: HERE, in shared memory, and at the workers named, which hold copies.

    Of a future it is the last that is heard: it will not run again. A task of a graph may, after a worker's death.
    """

    tasks: list[int]
    workers: tuple[int, ...]


class Expect(NamedTuple):
    """These tasks will read a stream from its start; or, with ``coming`` false, they will not after all."""

    task: int
    readers: tuple[int, ...]
    coming: bool = True


class Launch(NamedTuple):
    """Start worker processes in the background; each is announced by ``WorkerStarted``."""

    workers: tuple[int, ...]


class Prepare(NamedTuple):
    """Have a worker that has no tasks import what open jobs need; answered by ``WorkerStarted``, as if it were new."""

    worker: int


class Stop(NamedTuple):
    """Let a worker end in good order, or at once (``kill``) when what it runs is no longer wanted."""

    worker: int
    kill: bool


class FinishJob(NamedTuple):
    """Every output of the job is HERE or published; the shell releases them once its caller has taken them."""

    job: int


class FailJob(NamedTuple):
    """The job has failed at this task: its exception is in the shell, unless ``deaths`` says how many workers died."""

    job: int
    task: int
    deaths: int = 0


class FinishFuture(NamedTuple):
    """The value of this future is HERE or published."""

    task: int


class FailFuture(NamedTuple):
    """The future failed: task ``cause`` (itself, or one it depends on) raised or, with ``deaths``, kept dying."""

    task: int
    cause: int
    deaths: int = 0


class CancelFuture(NamedTuple):
    """The future was cancelled before it started."""

    task: int


Command: TypeAlias = (
    RunHere
    | RunAt
    | Publish
    | Revoke
    | Release
    | Expect
    | Launch
    | Prepare
    | Stop
    | FinishJob
    | FailJob
    | FinishFuture
    | FailFuture
    | CancelFuture
)
