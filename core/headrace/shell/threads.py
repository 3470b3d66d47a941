"""The threads that serve slots: a caller for as long as it waits for its job, and pool threads.

RunHere ──> mailbox of the slot ──> lanes.slots.run_batch ──> SlotRan, TaskRaised ──> post
                    ↑                        └── a stream ──> stages.Stages ──> StageEnded ──┤
                    └────────────── the next batch for the same slot ──────────────────┘
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from headrace.config import Settings
from headrace.errors import HeadraceError, InternalError, NoThreadError
from headrace.lanes.slots import Batch, Failure, Opening, Watch, run_batch
from headrace.observe import timeline
from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.shell.futures import After
from headrace.shell.jobs import Job, Jobs
from headrace.shell.telling import Teller

if TYPE_CHECKING:  # most programs have no stream
    from headrace.shell.stages import Node, Stages

_JOIN_S = 0.2
_NO_THREAD = (
    "can't start new thread: the user or the container has as many as it may (see ulimit -u, and pids.max of the "
    "cgroup); tasks of lane 'inline' need none"
)


class Post(Protocol):
    """Hands events to the machine; returns the next batch for ``slot``, if it has one."""

    def __call__(self, *events: e.Event, slot: int | None = None) -> c.RunHere | None: ...


class _Inside:
    """Not a ``contextmanager``, which sets the traceback of what it lets through: not every exception takes that."""

    def __init__(self, local: threading.local) -> None:
        self._local = local
        self._depth = getattr(local, "depth", 0)

    def __enter__(self) -> None:
        self._local.depth = self._depth + 1

    def __exit__(self, *_: object) -> None:
        self._local.depth = self._depth


class SlotThreads:
    """Mailboxes by slot, and a thread for each slot of the pool (ids above 0), started when it is first used.

    Args:
        jobs: the open jobs.
        post: see :class:`Post`.
        exists: whether the machine still knows a slot; the thread of one that it does not know ends.
        settings: for streams.
        waits_for: given a task that has not begun, those that it waits for; if it is in the batch of a slot, that slot.
        unfinished: given a job, the tasks that its caller waits for.
        failed: told that a thread could not be started, or cannot go on.
    """

    def __init__(
        self,
        jobs: Jobs,
        post: Post,
        exists: Callable[[int], bool],
        settings: Settings,
        waits_for: Callable[[int], tuple[list[int], int | None]],
        unfinished: Callable[[int], list[int]],
        failed: Callable[[HeadraceError], object],
    ) -> None:
        self._jobs = jobs
        self._post = post
        self._exists = exists
        self._local = threading.local()
        self._mailboxes: dict[int, SimpleQueue[Any]] = {}
        self._threads: set[threading.Thread] = set()  # those that have been started
        self._batches: dict[int, Batch] = {}
        self._watch = Watch(self._stalled)
        self._waits_for = waits_for
        self._unfinished = unfinished
        self._report = failed
        self._settings = settings
        self.stages: Stages | None = None  # made with the first stream
        self._making = threading.Lock()

    @property
    def nested(self) -> bool:
        """Whether the current thread is inside a task."""
        return getattr(self._local, "depth", 0) > 0

    def inside(self) -> _Inside:
        """The current thread is inside a task, though not in one of a batch."""
        return _Inside(self._local)

    def about_to_wait(self) -> None:
        """The current thread will wait for a future or a stream: if it is of the pool, another takes over its part."""
        batch: Batch | None = getattr(self._local, "pool_batch", None)
        if batch is not None and not batch.blocked:
            batch.blocked = True
            self._post(e.SlotBlocked(batch.slot, batch.take_spans(), batch.take_back()))

    def _holds_up(self, task: int) -> list[Node]:
        deps, slot = self._waits_for(task)
        batch = None if slot is None else self._batches.get(slot)
        return [("task", dep) for dep in deps] if batch is None else [batch.thread]

    def enter(self, slot: int, mailbox: SimpleQueue[Any]) -> None:
        """From now on, what is for a caller's slot goes into its own mailbox."""
        self._mailboxes[slot] = mailbox

    def leave(self, slot: int) -> None:
        """The caller does not wait any more."""
        self._mailboxes.pop(slot, None)

    # Threads are started after the lock has been left: see background.py. And inside the shield: whatever a signal's
    # handler raises while a thread is being started tears it.

    def get_ready(self, command: c.RunHere, after: After) -> None:
        """Has what a batch needs started. Under the runtime's lock."""
        if command.patience_s:
            after.append(self._watch.start)

    def put(self, command: c.RunHere, after: After) -> None:
        """Hands a batch to the thread of its slot. Under the runtime's lock; does not block."""
        slot = command.slot
        mailbox = self._mailboxes.get(slot)
        if mailbox is None:
            mailbox = self._mailboxes[slot] = SimpleQueue()
            after.append(functools.partial(self._start, slot, mailbox))
        mailbox.put(command)

    def _start(self, slot: int, mailbox: SimpleQueue[Any]) -> None:
        thread = threading.Thread(target=self._serve, args=(slot, mailbox), name=f"headrace-{slot}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._report(NoThreadError(_NO_THREAD))
            return
        self._threads.add(thread)
        for ended in [thread for thread in list(self._threads) if not thread.is_alive()]:
            self._threads.discard(ended)

    def _serve(self, slot: int, mailbox: SimpleQueue[Any]) -> None:
        while True:
            item = mailbox.get()
            if item is None:
                return
            while item is not None:
                item = self._served(item, mailbox)
            if not self._exists(slot):
                self._mailboxes.pop(slot, None)
                return

    def _served(self, command: c.RunHere, mailbox: SimpleQueue[Any]) -> c.RunHere | None:
        try:
            return self._context(command).run(self.run, command)
        except BaseException as error:  # a bug of ours: if this thread just ended, its batch would be waited for
            if self._mailboxes.get(command.slot) is mailbox:  # or else all who wait have been told already
                report = InternalError(f"the thread of a slot broke: {error!r}")
                report.__cause__ = error
                self._report(report)
            return None

    def _context(self, command: c.RunHere) -> contextvars.Context:
        """For a batch. Apart, so that no thread holds a job, and with it a whole graph, while it has nothing to do."""
        job = self._jobs.by_number.get(command.job)
        return contextvars.Context() if job is None else job.context.copy()

    def run(self, command: c.RunHere) -> c.RunHere | None:
        """Runs a batch in the current thread, reports, and returns the next one for the same slot.

        Raises:
            KeyboardInterrupt: a task raised it in the main thread: then it is the caller who was interrupted.
        """
        slot = command.slot
        batch = Batch(slot, command.tasks, command.patience_s, command.measured)
        job = self._jobs.by_number.get(command.job)
        if job is None:
            return self._post(e.SlotRan(slot, [], batch.end()), slot=slot)
        if job.lane == "processes":
            self._stages().serve(job)
        end = self._run_watched(job, batch, command.budget_s)
        if isinstance(end, (e.StageEnded, e.StageBegan, e.TaskDeferred)):
            return self._post(end, slot=slot)
        ran = e.SlotRan(slot, batch.take_spans(), batch.end())
        if type(end) is not Failure:
            return self._post(ran, slot=slot)
        return self._failed(job, end, ran)

    def _failed(self, job: Job, failure: Failure, ran: e.SlotRan) -> c.RunHere | None:
        error, slot = failure.error, ran.slot
        if isinstance(error, KeyboardInterrupt) and slot < 0 and threading.current_thread() is threading.main_thread():
            raise error
        if error.__traceback__ is not None:
            error.with_traceback(error.__traceback__.tb_next or error.__traceback__)
        job.errors[failure.task - job.base] = error
        if self.stages is not None:
            self.stages.abandon(failure.task)
        return self._post(e.TaskRaised(failure.task, e.HERE), ran, slot=slot)

    def _run_watched(
        self, job: Job, batch: Batch, budget_s: float
    ) -> Failure | e.StageEnded | e.StageBegan | e.TaskDeferred | None:
        local, watched = self._local, batch.patience_s > 0.0
        depth = getattr(local, "depth", 0)
        try:
            local.depth = depth + 1
            if batch.slot > 0:
                local.pool_batch = batch
            batch.thread = threading.get_ident()
            self._batches[batch.slot] = batch
            if watched:
                self._watch.begin(batch)
            teller = Teller(job, batch, budget_s) if job.observer is not None or timeline.recorders else None
            end = run_batch(job, batch, budget_s, teller)
            if not isinstance(end, Opening):
                return end
            go_on = self._stages().open(job, batch, end)
            del end  # what its generator has read is the generator's
            return go_on()
        finally:
            local.depth = depth
            if batch.slot > 0:
                local.pool_batch = None
            self._batches.pop(batch.slot, None)
            if watched:
                self._watch.end(batch)

    def _stages(self) -> Stages:
        from headrace.shell.stages import Stages

        with self._making:
            if self.stages is None:
                self.stages = Stages(
                    self._settings.stream_buffer_bytes,
                    self._post,
                    self.about_to_wait,
                    self._holds_up,
                    self._unfinished,
                    self._jobs,
                    most_processes=2 * self._settings.num_workers,
                    max_deaths=self._settings.max_deaths,
                    idle_timeout_s=self._settings.idle_timeout_s,
                )
            return self.stages

    def cancel_streams(self, error: BaseException, job: Job | None = None) -> None:
        """Ends the streams of a job, or all; also those that its tasks are about to open."""
        for one in list(self._jobs.by_number.values()) if job is None else [job]:
            one.cancelled = error
        if self.stages is not None:
            self.stages.cancel(error, job)

    def wait_for_streams(self) -> None:
        """Blocks until those that are being made are complete, or not wanted any more."""
        if self.stages is not None:
            self.stages.wait()

    def _stalled(self, batch: Batch) -> None:
        with batch.reporting:
            if not batch.ended:
                self._post(e.SlotStalled(batch.slot, batch.take_spans(), batch.take_back()))

    def drop_closed(self) -> None:
        """Takes from every batch what belongs to a job that is not open any more."""
        for batch in list(self._batches.values()):
            if batch.pending and self._jobs.of(batch.pending[0]) is None:
                batch.take_back()

    def stop_watching(self) -> None:
        """Ends the watch thread. Blocks, so not under the lock."""
        self._watch.close()

    def dismiss(self) -> None:
        """Has all pool threads end after what they run; later batches get new ones. Under the runtime's lock."""
        for slot, mailbox in list(self._mailboxes.items()):
            if slot > 0:
                del self._mailboxes[slot]
                mailbox.put(None)

    def join(self) -> None:
        """Waits a moment for the threads that were dismissed, and those of streams that were cancelled."""
        if self.stages is not None:
            self.stages.join(_JOIN_S)
        for thread in list(self._threads):
            if thread is not threading.current_thread():
                thread.join(_JOIN_S)
