"""What has happened: the only input of the decision core. Plain data, past tense, no I/O.

Vocabulary. A *task* has an id, unique in its runtime: ``base of its job + index in its graph``. A *job* is one
submitted graph. A *slot* is a thread of this process that runs tasks: the thread that waits for a job (its caller), or
a pool thread. A *worker* is a worker process. ``HERE`` is this process as a place that holds values; workers are places
too.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

HERE = 0
"""The place number of the owner's process; worker processes count from 1."""


class Span(NamedTuple):
    """One task that ran to its end. Times in seconds; ``start_s`` on the machine-wide monotonic clock."""

    task: int
    start_s: float
    wall_s: float
    cpu_s: float
    """CPU time of the thread that ran it, and what it waited for a core that others had; -1 when not measured."""
    width: float
    """CPU time of the whole process over wall time while it ran, that wait included: above 1, it is parallel inside.
    -1: not measured."""
    size_bytes: int
    """Size of the result, estimated without pickling; -1 when not known, or HERE, where nothing depends on it."""
    transfer_s: float
    """Seconds spent unpickling its arguments and pickling its result; 0 in this process."""


class JobSubmitted(NamedTuple):
    """A graph was handed in; ids are ``base + index``. ``caller`` is the slot of the thread that waits for it, if any.

    Args:
        lane: ``auto``, ``inline``, ``threads`` or ``processes``.
        limit: how many of its tasks may run at once.
        nested: the caller is itself a running task, so its thread must be able to run any of them, or all could wait.
        launch_s: what a new worker is expected to cost, imports included.
    """

    job: int
    base: int
    deps: Sequence[tuple[int, ...]]
    families: Sequence[Hashable]
    outputs: Sequence[int]
    literals: Collection[int]
    pinned: Collection[int]
    lane: str
    limit: int
    caller: int | None
    nested: bool = False
    launch_s: float = 0.15


class QuickTasksRan(NamedTuple):
    """A caller has run tasks without asking, as ``Machine.quick_s`` allows: family, how many, seconds in all."""

    ran: Sequence[tuple[Hashable, int, float]]


class FutureSubmitted(NamedTuple):
    """One call was submitted; ``deps`` are ids of earlier futures. Its result is wanted until ``FuturesDropped``."""

    task: int
    deps: tuple[int, ...]
    family: Hashable


class FuturesDropped(NamedTuple):
    """Nobody holds these futures any more: unfinished ones still run, their results are not kept."""

    tasks: tuple[int, ...]


class TasksCancelled(NamedTuple):
    """Futures that must not start; those that run already go on. Which were really cancelled is commanded back."""

    tasks: tuple[int, ...]


class JobCancelled(NamedTuple):
    """The caller has gone (Ctrl-C, an error of its own): stop the job's work at once."""

    job: int


@dataclass(slots=True)
class SlotRan:
    """A slot has ended its batch: ``spans`` ran, ``returned`` were not started and may go elsewhere."""

    slot: int
    spans: Sequence[Span]
    returned: Sequence[int]


class SlotStalled(NamedTuple):
    """A slot is busy with one task for long: ``spans`` ran before it, and the rest of its batch was taken away from it
    unstarted."""

    slot: int
    spans: Sequence[Span]
    returned: Sequence[int]


class SlotBlocked(NamedTuple):
    """The task that a pool slot is at waits for a future or a stream; ``spans`` ran before it, and the rest of its
    batch was taken away unstarted."""

    slot: int
    spans: Sequence[Span]
    returned: Sequence[int]


class TaskDeferred(NamedTuple):
    """A task has returned a gate, and is done when that opens: ``GateOpened`` follows, or has come first.

    It ends its batch: ``spans`` ran before it, ``returned`` were not started.
    """

    slot: int
    task: int
    spans: Sequence[Span]
    returned: Sequence[int]


class GateOpened(NamedTuple):
    """The gate that a task has returned is open."""

    task: int


class StageBegan(NamedTuple):
    """A task has returned a generator, which is stepped from now on: by its slot's thread (``stays``), or elsewhere.

    It ends its batch: ``spans`` ran before it, ``returned`` were not started. ``StreamOpened`` follows, and
    ``StageEnded``; if another thread makes the stream, they may come first.
    """

    slot: int
    task: int
    spans: Sequence[Span]
    returned: Sequence[int]
    stays: bool


class StreamOpened(NamedTuple):
    """Of a stage that began, the first item is there, or the end, or the failure: who reads it may start."""

    task: int


class StageEnded(NamedTuple):
    """A stage's generator has come to its end, or was stopped. ``busy_s``: how long it took, waiting not counted."""

    slot: int
    task: int
    busy_s: float


class WorkerStarted(NamedTuple):
    worker: int


@dataclass(slots=True)
class WorkerRan:
    """A worker has finished tasks. ``arrived``: those of them whose values came along and are HERE now."""

    worker: int
    spans: Sequence[Span]
    arrived: Collection[int]


class TaskRaised(NamedTuple):
    """A task raised; its exception waits in the shell. ``place`` is HERE or a worker."""

    task: int
    place: int


class TaskUnpicklable(NamedTuple):
    """A task could not be sent to a worker, or its result could not leave it; nothing of it is left there.

    ``must_stay``: not by accident; it holds something, such as a lock, that only this process may use.
    """

    task: int
    worker: int
    must_stay: bool = False


class ValuePublished(NamedTuple):
    """A worker has put a task's value into shared memory, from where every process can read it."""

    task: int
    worker: int


class TasksRevoked(NamedTuple):
    """A worker has given back tasks it had not started: it was asked to, or an input is not there after all."""

    worker: int
    tasks: Sequence[int]


class WorkerDied(NamedTuple):
    """A worker's process is gone; ``running`` is the task it was at, if any. ``expected``: it was told to stop."""

    worker: int
    running: int | None
    expected: bool = False


class WorkersIdled(NamedTuple):
    """A regular look at the clock: workers that had nothing to do for the idle time may be stopped, and what waits
    behind a task that takes longer than expected may go elsewhere."""


Event: TypeAlias = (
    JobSubmitted
    | QuickTasksRan
    | FutureSubmitted
    | FuturesDropped
    | TasksCancelled
    | JobCancelled
    | SlotRan
    | SlotStalled
    | SlotBlocked
    | TaskDeferred
    | GateOpened
    | StageBegan
    | StreamOpened
    | StageEnded
    | WorkerStarted
    | WorkerRan
    | TaskRaised
    | TaskUnpicklable
    | ValuePublished
    | TasksRevoked
    | WorkerDied
    | WorkersIdled
)
