"""The inline and the threads lane: slots of this process that run batches of tasks.

A slot is a thread: the caller that waits for its job (then its tasks run "inline"), or a pool thread. The two lanes
share all code; only who runs a batch differs. A watch thread takes the rest of a batch away from a slot that is stuck
in one task.

    commands RunHere ──> mailbox of the slot ──> run_batch ──> events SlotRan / TaskRaised
                                                    ↑ pending tasks ──(stalled: watch thread)──> event SlotStalled

A task whose value is a generator ends its batch, because its thread goes on with that; and so does one that is not done
yet, though it has returned: shell/stages.py.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from resource import RUSAGE_THREAD, getrusage
from time import perf_counter, process_time, thread_time
from typing import Any, NamedTuple, Protocol

from headrace.background import Background
from headrace.sched.events import Span
from headrace.store.schedstat import schedstat_s
from headrace.stream.handle import AHEAD
from headrace.task import fill

WATCH_S = 0.001
"""It is not looked more often than this whether a batch is stuck: a thread that wakes slows down the others, since it
wants the GIL."""

STARVED_FROM_S, STARVED_SHARE = 0.001, 0.95
"""Of a task this long that got less of the CPU than this it is asked whether other processes were to blame."""
HANDED_PER_S = 1000.0
"""Who goes to sleep this often is handed the GIL by another thread again and again (with pandas up to 12 times in a
millisecond), and stands in the run queue behind the one that woke it: the machine is not to blame for that. On a busy
machine a thread sleeps less than once in a millisecond."""
_local = threading.local()


class Values(Protocol):
    """What a batch reads from and writes to: the values of one job by index, and its calls."""

    base: int
    calls: Any
    values: dict[int, Any]
    streams: bool
    """Whether any of the values may be a stream."""

    stage: Callable[[int, Any, Any], tuple[Any, Any]]
    """The call of a task that may read streams: what is to be called, and with what."""

    def load(self, index: int) -> Any: ...


class Batch:
    """The tasks a slot has been given. At any time the watch thread may empty ``pending``, from the right, and report
    ``spans``.

    Who does that holds ``reporting`` until it has said so: :meth:`end` waits for it, so that nobody hears of the end of
    a batch first, and takes the slot for free while some of its tasks are in nobody's hands.
    """

    __slots__ = (
        "began_s",
        "blocked",
        "ended",
        "measured",
        "patience_s",
        "pending",
        "reporting",
        "slot",
        "spans",
        "stalled",
        "thread",
    )

    def __init__(self, slot: int, tasks: list[int], patience_s: float = 0.0, measured: bool = True) -> None:
        self.slot = slot
        self.pending = deque(tasks)
        self.measured = measured  # whether the CPU time of each task is taken
        self.patience_s = patience_s  # after which it is stuck in a task; 0: nothing waits behind it
        self.stalled = False  # has been reported once
        self.blocked = False  # likewise
        self.ended = False
        self.spans: deque[Span] = deque()  # of what has run and is not reported yet
        self.thread = 0
        self.reporting = threading.Lock()
        # When its present task began. Before the first one has, the batch cannot stall: if all of it could be taken
        # away from a thread that has not been given a processor yet, it could happen again and again, wherever the
        # tasks go.
        self.began_s = math.inf

    def end(self) -> list[int]:
        """Nothing more will run: returns what has not been started."""
        with self.reporting:
            self.ended = True
            return self.take_back()

    def take_back(self) -> list[int]:
        """Removes and returns what has not been started; safe from any thread, each task is returned once."""
        taken: list[int] = []
        try:
            while True:
                taken.append(self.pending.pop())
        except IndexError:
            return taken[::-1]

    def take_spans(self) -> list[Span]:
        """Removes and returns what is to be reported; safe from any thread, each span is returned once."""
        taken: list[Span] = []
        try:
            while True:
                taken.append(self.spans.popleft())
        except IndexError:
            return taken


class Opening:
    """A task whose call has returned a stream, what becomes one, or a gate."""

    __slots__ = ("args", "fn", "kwargs", "task", "value")

    def __init__(
        self, task: int, value: Any, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any] | None
    ) -> None:
        self.task = task
        self.value = value
        self.fn = fn
        self.args = args
        self.kwargs = kwargs


class Failure(NamedTuple):
    """A task's exception, on its way from the batch to the shell."""

    task: int
    error: BaseException


def run_batch(
    job: Values, batch: Batch, budget_s: float, after: Callable[[Span], None] | None = None
) -> Failure | Opening | None:
    """Runs tasks from left to right until the batch is empty, its budget is used up, one raises, or one makes a
    stream or waits for a gate.

    What has run stands in ``batch.spans`` then, and what is left in ``batch.pending`` has not been started. Any
    exception of a task, ``SystemExit`` and ``KeyboardInterrupt`` included, is caught and returned: whose it is, is for
    the shell to decide.

    ``after`` is called after each task; what it raises is not the task's failure, and is passed on.
    """
    pending, calls, values, base = batch.pending, job.calls, job.values, job.base
    measured = batch.measured
    spans = batch.spans
    cpu = width = -1.0
    slept = 0
    start = perf_counter()
    deadline = start + budget_s
    while pending:
        try:
            task = pending.popleft()
        except IndexError:  # the watch thread was quicker
            break
        batch.began_s = start
        index = task - base
        try:
            fn, args, kwargs, holes = calls[index]
            if holes:
                filled = list(args)
                for position, dep in holes:
                    try:
                        filled[position] = values[dep] if type(dep) is int else [values[d] for d in dep]
                    except KeyError:
                        filled[position] = job.load(dep) if isinstance(dep, int) else [job.load(d) for d in dep]
                args = filled
            if job.streams:
                fn, args = job.stage(task, fn, args)
            if measured:
                slept = sleeps()
                cpu, width = thread_time(), process_time()
            value = fn(*args, **kwargs) if kwargs else fn(*args)
        except BaseException as error:  # a task may raise anything, SystemExit included
            args = filled = []  # this frame goes no sooner than the error, and these may be handles of streams
            return Failure(task, error)
        if type(value) in AHEAD:
            return Opening(task, value, fn, _filled_again(job, index, args), kwargs)
        end = perf_counter()
        values[index] = value
        if measured:
            wall, cpu = end - start, thread_time() - cpu
            width = (process_time() - width) / wall if wall > 0.0 else 1.0
            if wall > STARVED_FROM_S and cpu < STARVED_SHARE * wall and sleeps() - slept < HANDED_PER_S * wall:
                # Reading a file lets go of the GIL; what is waited for it then belongs to this task's account as well.
                queued = queued_s()
                end = perf_counter()
                wall = end - start
                queued = min(wall - cpu, queued)
                cpu += queued
                width += queued / wall  # as if it had had that core
        span = Span(task, start, end - start, cpu, width, -1, 0.0)
        if after is not None:
            after(span)
        spans.append(span)
        if end >= deadline:
            break
        start = end
    return None


def _filled_again(job: Values, index: int, args: Sequence[Any]) -> Sequence[Any]:
    """The arguments of a task that has run: a program has emptied the list of its inputs."""
    try:
        return fill(job.calls[index], job.values)
    except KeyError:  # the job was cancelled: nobody reads its streams once more
        return args


def sleeps() -> int:
    """How often this thread has gone to sleep since it began."""
    return getrusage(RUSAGE_THREAD).ru_nvcsw


def queued_s() -> float:
    """Seconds that this thread has stood in the kernel's run queue since this was last asked.

    Without it a busy machine would look like a contended GIL: in both cases a task gets too little CPU time.
    """
    _, total = schedstat_s("thread-self")
    before = getattr(_local, "queued_s", 0.0)
    _local.queued_s = total
    return total - before


class Watch:
    """A daemon thread that notices batches of presumably quick tasks that are stuck in one. Sleeps for good while no
    such batch runs.

    Args:
        stalled: called from the watch thread with a batch whose rest should go elsewhere.
    """

    def __init__(self, stalled: Callable[[Batch], None]) -> None:
        self._stalled = stalled
        self._batches: set[Batch] = set()
        # Not an Event, whose lock would stay locked if Ctrl-C came in the middle of set().
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._next_s = math.inf  # when it will look again
        self._closed = False
        self._thread = Background(self._run, "headrace-watch")

    def start(self) -> None:
        """Starts the thread, unless there is one, or none is left for this process: then batches run unwatched."""
        with contextlib.suppress(RuntimeError):
            self._thread.start()

    def begin(self, batch: Batch) -> None:
        self._batches.add(batch)
        if self._next_s > perf_counter() + batch.patience_s:
            self._wake.put(None)

    def end(self, batch: Batch) -> None:
        self._batches.discard(batch)

    def close(self) -> None:
        self._closed = True
        self._wake.put(None)
        self._thread.cancel()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._closed:
            self._next_s = math.inf  # a batch that comes from here on wakes this thread
            now = perf_counter()
            next_s = min((self._look(batch, now) for batch in self._batches.copy()), default=math.inf)
            self._next_s = next_s
            try:
                self._wake.get(timeout=None if next_s == math.inf else max(next_s - now, WATCH_S))
            except Empty:
                pass

    def _look(self, batch: Batch, now: float) -> float:
        """Reports a batch that is stuck. Returns when it should be looked at again."""
        if batch.stalled:
            return math.inf
        stalls_s = (now if batch.began_s == math.inf else batch.began_s) + batch.patience_s
        if now > stalls_s:
            batch.stalled = True
            self._stalled(batch)
            return math.inf
        return stalls_s
