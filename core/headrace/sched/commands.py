"""What to do: the only output of the decision core. Plain data, imperative, no I/O.

Order matters per worker: commands for one worker must reach it in the order in which the core gave them. Commands are
never changed; the three most frequent ones are not frozen because a frozen dataclass takes twice as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


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


@dataclass(frozen=True, slots=True)
class Publish:
    """Have a worker put the value of a task it holds into shared memory; answered by ``ValuePublished``."""

    worker: int
    task: int


@dataclass(frozen=True, slots=True)
class Revoke:
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


@dataclass(frozen=True, slots=True)
class Launch:
    """Start worker processes in the background; each is announced by ``WorkerStarted``."""

    workers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Let a worker end in good order, or at once (``kill``) when what it runs is no longer wanted."""

    worker: int
    kill: bool


@dataclass(frozen=True, slots=True)
class FinishJob:
    """Every output of the job is HERE or published; the shell releases them once its caller has taken them."""

    job: int


@dataclass(frozen=True, slots=True)
class FailJob:
    """The job has failed at this task: its exception is in the shell, unless ``deaths`` says how many workers died."""

    job: int
    task: int
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class FinishFuture:
    """The value of this future is HERE or published."""

    task: int


@dataclass(frozen=True, slots=True)
class FailFuture:
    """The future failed: task ``cause`` (itself, or one it depends on) raised or, with ``deaths``, kept dying."""

    task: int
    cause: int
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class CancelFuture:
    """The future was cancelled before it started."""

    task: int


Command: TypeAlias = (
    RunHere
    | RunAt
    | Publish
    | Revoke
    | Release
    | Launch
    | Stop
    | FinishJob
    | FailJob
    | FinishFuture
    | FailFuture
    | CancelFuture
)
