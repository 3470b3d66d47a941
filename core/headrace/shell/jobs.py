"""What the shell knows of each open job: its work and its values. Which job a task id belongs to.

A task's id is the base of its job plus its index in the graph; values, errors and calls are kept by index. Ids are
handed out in blocks, so that the job of any id is one dictionary look-up away.

Invariants: :class:`Jobs` is changed under the runtime's lock only, and read without it (look-ups in dicts). A job is
open from ``add`` until its caller has taken its outputs; the job of the futures always is.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from headrace import companions
from headrace.errors import NOT_STARTED, WorkerDied
from headrace.graph import Graph
from headrace.observe import timeline
from headrace.sched.events import Span
from headrace.sched.machine import FUTURES
from headrace.shell.imports import modules_of
from headrace.stream.handle import Stream, for_task
from headrace.task import run_call

BLOCK_BITS = 20
_INDEX_MASK = (1 << BLOCK_BITS) - 1
_SAMPLED_CALLS = 1000
HEARD_WITHIN_S = 0.2
"""A caller that is called by an observer for longer than this is not waited for: it may itself wait for a task."""


class Observer(Protocol):
    """What wants to see each task of a job; called in the thread that called :meth:`Runtime.run`, in order.

    ``needs_values``: whether :meth:`finished` must be given every value. Then tasks stay in this process, unless the
    lane ``processes`` is forced: then their results are all brought here. With False it gets None for what is not here.
    """

    needs_values: bool

    def started(self, index: int) -> None:
        """A task of the graph is about to run here, or was sent to a worker; again if it is tried again."""

    def finished(self, index: int, value: Any, worker: str) -> None:
        """A task has its value; ``worker`` is the name of the thread or worker process that has made it."""


class Stored:
    """A handle on a value that stays with the runtime for as long as the handle lives. Thread-safe."""

    __slots__ = ("__weakref__", "_value")

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        """The value; does not block: it is there."""
        return self._value

    def __reduce__(self) -> tuple[type[Stored], tuple[Any]]:
        return Stored, (self._value,)


def plain_stage(task: int, fn: Any, args: Any) -> tuple[Any, Any]:
    """A call with streams among its arguments, as its thread should make it."""
    return fn, [for_task(arg, task) for arg in args]


class Job:
    """One job: its graph, its values as they come, and the mailbox in which its caller waits.

    Args:
        lane: where its tasks run.
        bring: brings the value of a task (by id) here that another process has.
    """

    def __init__(self, lane: str, bring: Callable[[int], Any]) -> None:
        self.number = FUTURES
        self.base = 0
        self.lane = lane
        self._bring = bring
        self.keys: Any = {}
        self.calls: Any = {}
        self.deps: Any = {}
        self.values: dict[int, Any] = {}
        self.wanted: set[int] = set()
        self.errors: dict[int, BaseException] = {}
        self.obituaries: dict[int, tuple[str, int]] = {}  # of the last worker that a task took down
        # Of one that died with no task to blame.
        self.last_obituary: tuple[str, int] = (f"{NOT_STARTED}: gone before it was ready", 0)
        self.mailbox: SimpleQueue[Any] = SimpleQueue()
        self.kept: deque[Any] = deque()  # taken out of the mailbox while its caller was running a batch
        self.observer: Observer | None = None
        self.listens = False  # its caller runs no task, so that it hears at once what the observer is told
        self.shows_values = False  # the observer must be given every value
        self.coming: set[int] = set()  # tasks that have run, of which it hears once their values can be had
        self.context = contextvars.copy_context()
        self.streams = False  # whether any of its values may be a stream
        self.pinned: Collection[int] = ()
        self.stage: Callable[[int, Any, Any], tuple[Any, Any]] = plain_stage
        self.cancelled: BaseException | None = None  # what streams end with that it opens from now on
        self.over = False  # its values are the caller's to collect
        self.abandoned = False  # its caller has left: nothing of it is worth being sent
        self._states: companions.States | None = None

    @classmethod
    def of_graph(cls, graph: Graph, lane: str, observer: Observer | None, bring: Callable[[int], Any]) -> Job:
        """A job without number and base: :meth:`Jobs.add` gives it both."""
        job = cls(lane, bring)
        job.keys, job.calls, job.deps, job.observer = graph.keys, graph.calls, graph.deps, observer
        job.shows_values = observer is not None and getattr(observer, "needs_values", True)
        for index, value in graph.literals.items():
            value = value.result() if isinstance(value, Stored) else value
            job.values[index] = value
            job.streams |= type(value) is Stream
        return job

    def load(self, index: int) -> Any:
        """The value of a task, brought here if it is not."""
        try:
            return self.values[index]
        except KeyError:
            value = self.values[index] = self._bring(self.base + index)
            return value

    def states(self) -> companions.States:
        """What workers should follow while they run this job: as it is when the first task is sent.

        The caller waits meanwhile, so what it has set for this job is set. Futures have no such time: asked each time.
        """
        if self._states is None or self.number == FUTURES:
            self._states = companions.states()
        return self._states

    def key(self, index: int) -> str:
        """The name of a task, for messages."""
        return str(self.keys[index])

    def error(self, index: int, deaths: int) -> BaseException:
        """Why a task has failed: what it raised, or that it was given up after so many deaths of workers."""
        if not deaths:
            return self.errors[index]
        reason, rss_bytes = self.obituaries.get(index, self.last_obituary)
        return WorkerDied(self.key(index), deaths, reason, rss_bytes)

    def recompute(self, index: int) -> None:
        """Runs a task again in this thread, and before it whatever it needs that is not here any more."""
        stack = [index]
        while stack:
            missing = [dep for dep in self.deps[stack[-1]] if dep not in self.values]
            if missing:
                stack.extend(missing)
                continue
            current = stack.pop()
            if current == index or current not in self.values:
                self.values[current] = run_call(self.calls[current], self.values)

    # ---- those who watch: the observer, told in the caller's thread, and the timelines being recorded

    def tell_started(self, tasks: Iterable[int]) -> None:
        """Tasks are about to run here, or were sent to a worker."""
        observer, base = self.observer, self.base
        if observer is not None:
            for task in tasks:
                self.mailbox.put(lambda index=task - base: observer.started(index))

    def tell_finished(self, span: Span, place: str) -> None:
        """Must come before the event that may end the job, so that the caller sees it first."""
        index = span.task - self.base
        self.tell_opened(index, place)
        if timeline.recorders:
            timeline.record([(self.keys[index], place, span.start_s, span.wall_s)])

    def tell_opened(self, index: int, place: str) -> None:
        """A task has a value; if that is a stream, it still makes it."""
        observer = self.observer
        if observer is None:
            return
        if self.shows_values and index not in self.values:
            self.coming.add(index)
            return
        value = self.values.get(index)
        self.mailbox.put(lambda: observer.finished(index, value, place))

    def tell_published(self, task: int, place: str) -> None:
        """The value of a task has been published. As :meth:`tell_finished`, but it is left to the caller to load it."""
        observer, index = self.observer, task - self.base
        if observer is not None and index in self.coming:
            self.coming.discard(index)
            self.mailbox.put(lambda: observer.finished(index, self.load(index), place))

    def call_observer(self) -> None:
        """In the caller's thread, while it runs a batch: passes on what is known by now, keeps commands for later."""
        while True:
            try:
                item = self.mailbox.get_nowait()
            except Empty:
                return
            if callable(item):
                item()
            else:
                self.kept.append(item)

    def let_listen(self) -> None:
        """Blocks until the caller has heard what it was told, if it listens; but it may be busy with an observer."""
        heard = _Heard()
        if self.listens:
            self.mailbox.put(heard)
            with suppress(Empty):
                heard.get(timeout=HEARD_WITHIN_S if self.listens else 0)  # asked again: see stop_listening

    def stop_listening(self) -> None:
        """The caller has left: nobody shall wait for it."""
        self.listens = False
        with suppress(Empty):
            while True:
                item = self.mailbox.get_nowait()
                if type(item) is _Heard:
                    item()


class _Heard(SimpleQueue[None]):
    """Stands in a mailbox behind what its owner should have heard; becomes full when that has come to it."""

    def __call__(self) -> None:
        self.put(None)


class Jobs:
    """The open jobs by number, and by the id of any of their tasks."""

    def __init__(self, lane: str, bring: Callable[[int], Any]) -> None:
        self._bring = bring
        self._next_number = FUTURES + 1
        self._next_block = 1
        self.reset(lane)

    def reset(self, lane: str) -> None:
        """Forgets all jobs, and begins a new one for futures, which run in ``lane``."""
        self._of_block: dict[int, Job] = {}
        self._next_future = 0  # the first id of a block is never used up: a new block is begun
        self.futures = Job(lane, self._bring)
        self.by_number: dict[int, Job] = {FUTURES: self.futures}

    def add(self, job: Job) -> None:
        """Opens the job of a graph: it gets its number and its base."""
        blocks = _blocks_of(job)
        job.number, job.base = self._next_number, self._next_block << BLOCK_BITS
        self._next_number += 1
        for block in range(self._next_block, self._next_block + blocks):
            self._of_block[block] = job
        self._next_block += blocks
        self.by_number[job.number] = job

    def remove(self, job: Job) -> bool:
        """Forgets a job; whether it was known."""
        if self.by_number.pop(job.number, None) is None:
            return False
        job.stage = plain_stage  # another one leads back to the job
        if job.streams:  # who still makes one shall not think that it will be read
            for index in [index for index, value in list(job.values.items()) if type(value) is Stream]:
                del job.values[index]
        first = job.base >> BLOCK_BITS
        for block in range(first, first + _blocks_of(job)):
            self._of_block.pop(block, None)
        return True

    def new_future(self) -> int:
        """A fresh id in the job of the futures."""
        if self._next_future & _INDEX_MASK == 0:
            self._next_future = self._next_block << BLOCK_BITS
            self._of_block[self._next_block] = self.futures
            self._next_block += 1
        task = self._next_future
        self._next_future += 1
        return task

    def is_open(self, job: Job) -> bool:
        """Whether somebody still wants what a job makes."""
        return self.by_number.get(job.number) is job

    def of(self, task: int) -> Job | None:
        """The job of a task; None when it is not open any more."""
        return self._of_block.get(task >> BLOCK_BITS)

    def key_of(self, task: int) -> str:
        """The name of a task, for messages."""
        job = self.of(task)
        try:
            return str(task) if job is None else job.key(task - job.base)
        except KeyError:
            return str(task)  # of a future that nobody holds any more, though its stream is still made

    def release(self, tasks: list[int]) -> tuple[list[int], list[Any]]:
        """Forgets values that nobody reads any more.

        Returns:
            the tasks whose values the lanes may forget too; and the values, for the caller to drop once it has left
            the lock, because their destructors are foreign code.
        """
        released: list[int] = []
        values: list[Any] = []
        for task in tasks:
            job = self._of_block.get(task >> BLOCK_BITS)
            if job is None:
                continue
            index = task - job.base
            if job.over:
                if index not in job.wanted:
                    released.append(task)
                continue
            value = job.values.pop(index, None)
            if type(value) is Stream:
                value.expect_nobody()
            values.append(value)
            released.append(task)
            if job is self.futures:
                for table in (job.calls, job.deps, job.keys):
                    values.append(table.pop(index, None))
        return released, values

    def modules_in_use(self) -> tuple[str, ...]:
        """What the functions of all open jobs need: a new worker had best import it at once.

        Under the lock, so of a large job only a sample is looked at.
        """
        return modules_of(call for job in self.by_number.values() for call in _sample(job.calls) if call)


def _sample(calls: Any) -> Iterable[Any]:
    step = 1 + len(calls) // _SAMPLED_CALLS
    return islice(list(calls.values()), 0, None, step) if isinstance(calls, dict) else calls[::step]


def number_in_block(task: int) -> int:
    """A short number for the name of a future."""
    return task & _INDEX_MASK


def _blocks_of(job: Job) -> int:
    return (len(job.calls) >> BLOCK_BITS) + 1
