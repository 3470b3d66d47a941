"""The runtime: the only place where the parts are put together.

    caller's thread ── run(graph) ──┐                             ┌── RunHere ──> mailbox of a slot (lanes/slots.py)
    pool threads ──── SlotRan ──────┼─> lock: Machine.handle() ──>┼── RunAt, Publish, Release ──> ProcessLane
    (lanes/processes) headrace-io ───── WorkerRan ────┘   (pure, sched/)            └── FinishJob, FinishFuture ──>
    the caller, a Future

Any thread that has an event takes the lock, lets the machine decide, and only *enqueues* what it commanded; what
takes long or runs foreign code (pickling, destructors, future callbacks) happens after the lock has been left.
"""

from __future__ import annotations

import atexit
import contextvars
import dataclasses
import os
import signal
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection, Hashable
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for_futures
from queue import Empty, SimpleQueue
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from headrace import config, observe
from headrace.errors import ConfigError, HeadraceError, InternalError, MustStayHere, UnpicklableError, WorkerDied
from headrace.graph import Graph
from headrace.lanes.slots import Batch, Failure, Watch, run_batch, run_call_of
from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.machine import FUTURES, Machine
from headrace.task import Call, Slotted, call_nested, map_nested

if TYPE_CHECKING:
    from headrace.lanes.processes.lane import ProcessLane

BLOCK_BITS = 20
"""Task ids are handed out in blocks, so that the job of any id is one dictionary look-up away."""
EXIT_TIMEOUT_S = 1.0


class Observer(Protocol):
    """What wants to see each task of a job; called in the thread that called :meth:`Runtime.run`, in order.

    ``needs_values``: whether :meth:`finished` must be given every value. Then tasks stay in this process, unless the
    lane ``processes`` is forced: then their results are all brought here. With False it gets None for what is not here.
    """

    needs_values: bool

    def started(self, index: int) -> None: ...

    def finished(self, index: int, value: Any, worker: str) -> None: ...


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


class _Job:
    """What the shell knows of a job: the work and the values, by index."""

    def __init__(self, runtime: Runtime, number: int, base: int, lane: str) -> None:
        self.runtime = runtime
        self.number = number
        self.base = base
        self.lane = lane
        self.keys: Any = {}
        self.calls: Any = {}
        self.deps: Any = {}
        self.values: dict[int, Any] = {}
        self.wanted: set[int] = set()
        self.errors: dict[int, BaseException] = {}
        self.mailbox: SimpleQueue[Any] = SimpleQueue()
        self.kept: deque[Any] = deque()  # taken out of the mailbox while its caller was running a batch
        self.observer: Observer | None = None
        self.context = contextvars.copy_context()
        self.over = False  # its values are the caller's to collect

    def load(self, index: int) -> Any:
        """The value of a task, brought here if it is not."""
        try:
            return self.values[index]
        except KeyError:
            lane = self.runtime._lane
            if lane is None:
                raise InternalError(f"the value of task {self.key(index)} is lost") from None
            value = self.values[index] = lane.load(self.base + index)
            return value

    def key(self, index: int) -> str:
        return str(self.keys[index])


class RuntimeFuture(Future):  # type: ignore[type-arg]
    """The future of :meth:`Runtime.submit`. May be an argument of further submits, nested in lists, tuples and
    dicts."""

    def __init__(self, runtime: Runtime, task: int) -> None:
        super().__init__()
        self._runtime = runtime
        self._task = task

    def cancel(self) -> bool:
        """Cancels the task unless it has started; also cancels what depends on it. Does not block."""
        if not self.done():
            self._runtime._post(e.TasksCancelled((self._task,)))
        return self.cancelled()

    def __reduce__(self) -> Any:
        raise UnpicklableError(
            "a Future stays in its process: pass it as an argument to submit(), not inside an object"
        )


class Runtime(Executor):
    """Runs calls and graphs of calls on this machine, each where it runs fastest. A ``concurrent.futures.Executor``.

    Nothing is started before it is needed: threads with the first task that is not quick, worker processes when tasks
    turn out to hold the GIL. Thread-safe. As a context manager it waits for its futures and stops everything on
    leaving.

    Args:
        settings: see :class:`headrace.config.Settings`; by default resolved from arguments and environment.
        arguments: single settings by name.
    """

    def __init__(self, settings: config.Settings | None = None, **arguments: Any) -> None:
        self.settings = settings if settings is not None else config.resolve(arguments)
        worker = sys.modules.get("headrace.lanes.processes.worker")
        self._in_worker = worker is not None and worker.in_worker()  # the cores are taken: no pool inside a pool
        if self._in_worker:
            self.settings = dataclasses.replace(self.settings, lane="inline")
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._lane: ProcessLane | None = None
        self._lane_queued = False
        self._closed = False
        self._mailboxes: dict[int, SimpleQueue[c.RunHere | None]] = {}
        self._threads: list[threading.Thread] = []
        self._watch = Watch(self._stalled)
        self._batches: dict[int, Batch] = {}
        self._next_job = FUTURES + 1
        self._next_caller = -1
        self._next_block = 1
        self._blocks: dict[int, _Job] = {}
        self._futures: dict[int, RuntimeFuture] = {}
        self._next_future = 0
        self._dropped: deque[int] = deque()
        self._obituaries: dict[int, tuple[str, int]] = {}
        self._shield = 0
        self._interrupted = False
        self._main_ident = threading.main_thread().ident
        self._reset()
        observe.register(self)

    def _reset(self) -> None:
        s = self.settings
        self._machine = Machine(
            s.num_workers,
            lane=s.lane,
            inline_below_s=s.inline_below_s,
            ahead_s=s.ahead_s,
            max_deaths=s.max_deaths,
            idle_timeout_s=s.idle_timeout_s,
            check=s.check,
        )
        self._submitted = _Job(self, FUTURES, 0, s.lane)
        self._jobs: dict[int, _Job] = {FUTURES: self._submitted}

    # ---- graphs

    def run(
        self,
        graph: Graph,
        *,
        lane: str | None = None,
        limit: int | None = None,
        observer: Observer | None = None,
        rerun: bool = False,
        keep: bool = False,
    ) -> list[Any]:
        """Runs a graph and returns the values of its outputs, in their order. Blocks; the calling thread helps.

        Args:
            lane: overrides the setting for this graph.
            limit: how many tasks may run at once; by default ``settings.num_workers``.
            observer: is told of each task, in this thread.
            rerun: a task that fails is run again in this thread, where a debugger sees it, before its exception is
            raised. keep: return :class:`Stored` handles instead of values.

        Raises:
            Exception: a task's own exception, as itself.
            WorkerDied: a task took down ``settings.max_deaths`` workers.
            UnpicklableError: lane ``processes`` is forced and a task or a result cannot travel.
        """
        restore = self._shield_interrupts()
        job: _Job | None = None
        try:
            job, event = self._open(graph, lane, limit, observer)
            failure = self._drive(job, event)
        except BaseException:
            if job is not None:
                self._abandon(job)
            raise
        finally:
            restore()
        if failure is not None:
            self._raise(job, failure, rerun)
        try:
            values = [job.load(index) for index in graph.outputs]
        finally:
            self._collected(job)
        return [Stored(value) for value in values] if keep else values

    def _open(
        self, graph: Graph, lane: str | None, limit: int | None, observer: Observer | None
    ) -> tuple[_Job, e.JobSubmitted]:
        self._check_open()
        lane = lane or self.settings.lane
        if lane not in config.LANES:
            raise ConfigError(f"lane must be one of {', '.join(config.LANES)}, not {lane!r}")
        if self._in_worker:
            lane = "inline"
        size = len(graph.calls)
        blocks = (size >> BLOCK_BITS) + 1
        with self._lock:
            number, caller, block = self._next_job, self._next_caller, self._next_block
            self._next_job += 1
            self._next_caller -= 1
            self._next_block += blocks
        job = _Job(self, number, block << BLOCK_BITS, lane)
        job.keys, job.calls, job.deps, job.observer = graph.keys, graph.calls, graph.deps, observer
        for index, value in graph.literals.items():
            job.values[index] = value.result() if isinstance(value, Stored) else value
        outputs: list[int] | range = graph.outputs
        pinned: Collection[int] = graph.pinned
        if observer is not None and getattr(observer, "needs_values", True):
            if lane == "processes":
                outputs = range(size)
            else:
                pinned = range(size)
        job.wanted = set(outputs)
        with self._lock:
            self._jobs[number] = job
            for i in range(block, block + blocks):
                self._blocks[i] = job
        observe.touch()
        event = e.JobSubmitted(
            job=number,
            base=job.base,
            deps=graph.deps,
            families=graph.families,
            outputs=outputs,
            literals=graph.literals,
            pinned=pinned,
            lane=lane,
            limit=min(limit or self.settings.num_workers, max(self.settings.num_workers, limit or 0)),
            caller=caller,
            nested=getattr(self._local, "depth", 0) > 0,
        )
        return job, event

    def _drive(self, job: _Job, event: e.JobSubmitted) -> c.FailJob | None:
        """The caller's part: runs what the machine gives to its slot, and calls the observer, until the job is over."""
        caller = event.caller
        assert caller is not None
        self._mailboxes[caller] = job.mailbox
        try:
            item: Any = self._post(event, slot=caller)
            while True:
                if item is None:
                    item = job.kept.popleft() if job.kept else job.mailbox.get()
                kind = type(item)
                if kind is c.RunHere:
                    item = self._run_here(item)
                elif kind is c.FinishJob:
                    return None
                elif kind is c.FailJob:
                    failed: c.FailJob = item
                    return failed
                elif kind is InternalError:
                    raise item
                else:
                    item()
                    item = None
        finally:
            self._mailboxes.pop(caller, None)

    def _abandon(self, job: _Job) -> None:
        """The caller leaves (Ctrl-C, a failing observer): whatever of its job is under way stops, or is ignored."""
        self._post(e.JobCancelled(job.number))
        self._collected(job)

    def _raise(self, job: _Job, failure: c.FailJob, rerun: bool) -> None:
        index = failure.task - job.base
        try:
            if failure.deaths:
                reason, rss = self._obituaries.pop(failure.task, ("gone before it was ready", 0))
                raise WorkerDied(job.key(index), failure.deaths, reason, rss)
            if rerun:
                self._recompute(job, index)
            error = job.errors[failure.task]
        finally:
            self._collected(job)
        try:
            raise error
        finally:
            del error

    def _recompute(self, job: _Job, index: int) -> None:
        """Runs a task again in this thread, and before it whatever it needs that is not here any more."""
        stack = [index]
        while stack:
            missing = [dep for dep in job.deps[stack[-1]] if dep not in job.values]
            if missing:
                stack.extend(missing)
                continue
            current = stack.pop()
            if current == index or current not in job.values:
                job.values[current] = run_call_of(job, current)

    def _collected(self, job: _Job) -> None:
        """The caller has taken what it wants: forget the job."""
        with self._lock:
            if self._jobs.pop(job.number, None) is None:
                return
            blocks = (len(job.calls) >> BLOCK_BITS) + 1
            for block in range(job.base >> BLOCK_BITS, (job.base >> BLOCK_BITS) + blocks):
                self._blocks.pop(block, None)
            if self._lane is not None:
                self._lane.release([job.base + index for index in job.wanted])
        for batch in list(self._batches.values()):
            if batch.pending and self._job_of(batch.pending[0]) is None:
                batch.take_back()

    # ---- futures

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedules ``fn(*args, **kwargs)`` and returns its future at once.

        Futures of this runtime may stand anywhere in the arguments, also nested in lists, tuples and dicts: the call
        starts once they are done and gets their values. If one of them fails, so does this future, with its exception.
        """
        self._check_open()
        if not callable(fn):
            raise TypeError(f"submit() needs a function to call, not {fn!r}")
        deps: dict[int, int] = {}

        def replace(obj: Any) -> Any:
            if type(obj) is RuntimeFuture and obj._runtime is self:
                return Slotted(deps.setdefault(obj._task, len(deps)))
            return obj

        call: Call = (fn, args, kwargs or None, ())
        new_args = map_nested(args, replace)
        new_kwargs = map_nested(kwargs, replace)
        if deps:
            call = (call_nested, (fn, new_args, new_kwargs, None), None, ((3, tuple(deps)),))
        with self._lock:
            if self._next_future & ((1 << BLOCK_BITS) - 1) == 0:
                self._next_future = self._next_block << BLOCK_BITS
                self._blocks[self._next_block] = self._submitted
                self._next_block += 1
            task = self._next_future
            self._next_future += 1
        future = RuntimeFuture(self, task)
        job = self._submitted
        job.calls[task] = call
        job.deps[task] = tuple(deps)
        job.keys[task] = f"{_name(fn)}-{task & ((1 << BLOCK_BITS) - 1)}"
        self._futures[task] = future
        weakref.finalize(future, self._dropped.append, task).atexit = False
        self._post(e.FutureSubmitted(task, tuple(deps), _family(fn)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the runtime: no new work is taken; with ``wait`` returns when all futures are done and everything is
        stopped."""
        if cancel_futures:
            self._post(e.TasksCancelled(tuple(self._futures)))
        self._closed = True
        if wait:
            self._stop_when_done()
        else:
            threading.Thread(target=self._stop_when_done, name="headrace-shutdown", daemon=True).start()

    def _stop_when_done(self) -> None:
        wait_for_futures(list(self._futures.values()))
        self._stop()

    def _stop(self) -> None:
        self._closed = True
        self._watch.close()
        with self._lock:
            lane, self._lane = self._lane, None
            mailboxes = [box for slot, box in self._mailboxes.items() if slot > 0]
        for box in mailboxes:
            box.put(None)
        if lane is not None:
            lane.close(EXIT_TIMEOUT_S)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(0.2)
        observe.unregister(self)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Runtime has been shut down; create a new one")
        if self._pid != os.getpid():
            raise RuntimeError("this Runtime belongs to the parent process; create one of your own after a fork")

    # ---- events in, commands out

    def _post(self, *events: e.Event, slot: int | None = None) -> c.RunHere | None:
        """Hands events to the machine and starts what it commands. Returns the next batch for ``slot``, if any."""
        mine: c.RunHere | None = None
        after: list[Any] = []
        shielded = threading.get_ident() == self._main_ident
        if shielded:
            self._shield += 1
        try:
            with self._lock:
                try:
                    if self._dropped:
                        events = (self._drain_dropped(), *events)
                    for event in events:
                        for command in self._machine.handle(event, perf_counter()):
                            batch = self._perform(command, slot, after)
                            if batch is not None:
                                mine = batch
                except Exception as error:
                    self._crash(error)
            if self._lane_queued and self._lane is not None:
                self._lane_queued = False
                self._lane.flush()
            for action in after:
                if callable(action):
                    action()
        finally:
            if shielded:
                self._shield -= 1
                if self._interrupted and not self._shield:
                    self._interrupted = False
                    raise KeyboardInterrupt
        return mine

    def _perform(self, command: c.Command, slot: int | None, after: list[Any]) -> c.RunHere | None:
        """Enqueues one command. Runs under the lock: nothing here may block or call foreign code."""
        kind = type(command)
        if kind is c.RunHere:
            run: c.RunHere = command  # type: ignore[assignment]
            self._tell_started(run.job, run.tasks)
            if run.slot == slot:
                return run
            self._mailbox(run.slot).put(run)
        elif kind is c.Release:
            self._release(command.tasks, command.workers, after)  # type: ignore[union-attr]
        else:
            _PERFORM[kind](self, command, after)
        return None

    def _release(self, tasks: list[int], workers: tuple[int, ...], after: list[Any]) -> None:
        released = []
        blocks, lane = self._blocks, self._lane
        for task in tasks:
            job = blocks.get(task >> BLOCK_BITS)
            if job is not None and job.over:
                if task - job.base not in job.wanted:
                    released.append(task)
            elif job is not None:
                # Kept until the lock is left: the destructor of a value is foreign code.
                after.append((job.values.pop(task - job.base, None),))
                if job.base == 0:
                    job.calls.pop(task, None)
                    job.deps.pop(task, None)
                    job.keys.pop(task, None)
                released.append(task)
        if lane is not None:
            for worker in workers:
                lane.drop(worker, tasks)
                self._lane_queued = True
            if released:
                lane.release(released)

    def _run_at(self, command: c.RunAt, after: list[Any]) -> None:
        assert self._lane is not None
        self._lane.run(command.worker, command.tasks)
        self._lane_queued = True
        job = self._job_of(command.tasks[0])
        if job is not None:
            self._tell_started(job.number, command.tasks)

    def _publish(self, command: c.Publish, after: list[Any]) -> None:
        assert self._lane is not None
        self._lane.publish(command.worker, command.task)
        self._lane_queued = True

    def _revoke(self, command: c.Revoke, after: list[Any]) -> None:
        assert self._lane is not None
        self._lane.revoke(command.worker, command.tasks)
        self._lane_queued = True

    def _stop_worker(self, command: c.Stop, after: list[Any]) -> None:
        assert self._lane is not None
        self._lane.stop(command.worker, command.kill)
        self._lane_queued = True

    def _launch(self, command: c.Launch, after: list[Any]) -> None:
        if self._lane is None:
            from headrace.lanes.processes.lane import ProcessLane

            self._lane = ProcessLane(self.settings, self)
        self._lane.launch(command.workers, self._modules_in_use())
        self._lane_queued = True

    def _finish_job(self, command: c.FinishJob, after: list[Any]) -> None:
        job = self._jobs.get(command.job)
        if job is not None:
            job.over = True
            job.mailbox.put(command)

    def _fail_job(self, command: c.FailJob, after: list[Any]) -> None:
        job = self._jobs.get(command.job)
        if job is not None:
            job.over = True
            job.mailbox.put(command)

    def _finish_future(self, command: c.FinishFuture, after: list[Any]) -> None:
        future = self._futures.pop(command.task, None)
        if future is not None:
            after.append(lambda: self._resolve(future))

    def _resolve(self, future: RuntimeFuture) -> None:
        try:
            value = self._submitted.load(future._task)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    def _fail_future(self, command: c.FailFuture, after: list[Any]) -> None:
        future = self._futures.pop(command.task, None)
        if future is None:
            return
        if command.deaths:
            reason, rss = self._obituaries.get(command.cause, ("gone before it was ready", 0))
            error: BaseException = WorkerDied(self.key_of(command.cause), command.deaths, reason, rss)
        else:
            error = self._submitted.errors[command.cause]
        after.append(lambda: future.set_exception(error))

    def _cancel_future(self, command: c.CancelFuture, after: list[Any]) -> None:
        future = self._futures.pop(command.task, None)
        if future is not None:

            def cancel() -> None:
                Future.cancel(future)
                future.set_running_or_notify_cancel()

            after.append(cancel)

    def _drain_dropped(self) -> e.FuturesDropped:
        tasks = []
        while self._dropped:
            tasks.append(self._dropped.popleft())
        for task in tasks:
            self._submitted.errors.pop(task, None)
        return e.FuturesDropped(tuple(tasks))

    def _crash(self, error: BaseException) -> None:
        """An invariant broke. Every waiting caller is told, and the runtime begins afresh, so that it stays usable."""
        report = InternalError(f"the scheduler broke; this is a bug of Headrace: {error!r}")
        report.__cause__ = error
        for job in self._jobs.values():
            job.mailbox.put(report)
        futures, self._futures = list(self._futures.values()), {}
        lane, self._lane = self._lane, None
        self._blocks = {}
        for slot, box in list(self._mailboxes.items()):
            if slot > 0:
                del self._mailboxes[slot]
                box.put(None)
        self._reset()

        def tell() -> None:
            if lane is not None:
                lane.close(EXIT_TIMEOUT_S)
            for future in futures:
                future.set_exception(report)

        threading.Thread(target=tell, name="headrace-crash", daemon=True).start()

    # ---- slots

    def _mailbox(self, slot: int) -> SimpleQueue[c.RunHere | None]:
        box = self._mailboxes.get(slot)
        if box is None:
            box = self._mailboxes[slot] = SimpleQueue()
            thread = threading.Thread(target=self._pool_loop, args=(slot, box), name=f"headrace-{slot}", daemon=True)
            self._threads = [t for t in self._threads if t.is_alive()]
            self._threads.append(thread)
            thread.start()
        return box

    def _pool_loop(self, slot: int, mailbox: SimpleQueue[c.RunHere | None]) -> None:
        while True:
            item = mailbox.get()
            if item is None:
                return
            while item is not None:
                job = self._jobs.get(item.job)
                context = contextvars.Context() if job is None else job.context.copy()
                item = context.run(self._run_here, item)
            if slot not in self._machine.slots:
                self._mailboxes.pop(slot, None)
                return

    def _run_here(self, command: c.RunHere) -> c.RunHere | None:
        """Runs a batch in the current thread, reports, and returns the next one for the same slot."""
        slot, local = command.slot, self._local
        batch = Batch(slot, command.tasks)
        job = self._jobs.get(command.job)
        spans: list[e.Span] = []
        failure: Failure | None = None
        if job is not None:
            watched = command.budget_s > 0.0
            self._batches[slot] = batch
            if watched:
                self._watch.begin(batch)
            local.depth = getattr(local, "depth", 0) + 1
            try:
                spans, failure = run_batch(job, batch, command.budget_s, self._teller(job, slot))
            finally:
                local.depth -= 1
                del self._batches[slot]
                if watched:
                    self._watch.end(batch)
        ran = e.SlotRan(slot, spans, batch.take_back())
        if job is None or failure is None:
            return self._post(ran, slot=slot)
        error = failure.error
        if isinstance(error, KeyboardInterrupt) and slot < 0 and threading.get_ident() == self._main_ident:
            raise error
        if error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next or error.__traceback__
        job.errors[failure.task] = error
        return self._post(e.TaskRaised(failure.task, e.HERE), ran, slot=slot)

    def _stalled(self, batch: Batch) -> None:
        self._post(e.SlotStalled(batch.slot, batch.take_back()))

    # ---- observers

    def _tell_started(self, number: int, tasks: list[int]) -> None:
        job = self._jobs.get(number)
        if job is not None and job.observer is not None:
            observer, base = job.observer, job.base
            for task in tasks:
                job.mailbox.put(lambda index=task - base: observer.started(index))

    def _teller(self, job: _Job, slot: int) -> Callable[[e.Span], None] | None:
        """What has to be done after each task of a batch for those who watch; None if nobody does."""
        if job.observer is None and not observe.recorders:
            return None
        place = threading.current_thread().name

        def tell(span: e.Span) -> None:
            self._tell_finished(job, span, place)
            if slot < 0:
                self._call_observer(job)

        return tell

    def _call_observer(self, job: _Job) -> None:
        """In the caller's thread, while it runs a batch: passes on what is known by now, and keeps commands for
        later."""
        while True:
            try:
                item = job.mailbox.get_nowait()
            except Empty:
                return
            if callable(item):
                item()
            else:
                job.kept.append(item)

    def _tell_finished(self, job: _Job, span: e.Span, place: str) -> None:
        """Must come before the event that may end the job, so that the caller sees it first."""
        observer, index = job.observer, span.task - job.base
        if observer is not None:
            value = job.values.get(index)
            job.mailbox.put(lambda: observer.finished(index, value, place))
        if observe.recorders:
            observe.record([(job.keys[index], place, span.start_s, span.wall_s)])

    # ---- what the processes lane needs of its host

    def post(self, event: e.Event) -> None:
        """An event from the processes lane; any thread."""
        kind = type(event)
        if kind is e.WorkerRan:
            place = f"headrace-worker-{event.worker}"  # type: ignore[union-attr]
            if observe.recorders or any(job.observer is not None for job in list(self._jobs.values())):
                for span in event.spans:  # type: ignore[union-attr]
                    job = self._job_of(span.task)
                    if job is not None:
                        self._tell_finished(job, span, place)
        elif kind is e.TaskUnpicklable:
            job = self._job_of(event.task)  # type: ignore[union-attr]
            error = None if job is None else job.errors.get(event.task)  # type: ignore[union-attr]
            if isinstance(error, MustStayHere):
                event = e.TaskUnpicklable(event.task, event.worker, must_stay=True)  # type: ignore[union-attr]
        elif kind is e.WorkerDied and event.running is not None and self._lane is not None:  # type: ignore[union-attr]
            self._obituaries[event.running] = self._lane.obituary(event.worker)  # type: ignore[union-attr]
        self._post(event)

    def deliver(self, task: int, value: Any) -> None:
        job = self._job_of(task)
        if job is not None:
            job.values[task - job.base] = value

    def fail(self, task: int, error: BaseException) -> None:
        job = self._job_of(task)
        if job is not None:
            job.errors[task] = error

    def call_of(self, task: int) -> tuple[Call, int]:
        job = self._job_or_raise(task)
        return job.calls[task - job.base], job.base

    def deps_of(self, task: int) -> tuple[int, ...]:
        job = self._job_or_raise(task)
        base = job.base
        return tuple([base + dep for dep in job.deps[task - base]])

    def value_of(self, task: int) -> Any:
        job = self._job_or_raise(task)
        return job.values[task - job.base]

    def wanted(self, task: int) -> bool:
        job = self._job_of(task)
        return job is not None and (job.base == 0 or task - job.base in job.wanted)

    def key_of(self, task: int) -> str:
        job = self._job_of(task)
        return str(task) if job is None else job.key(task - job.base)

    def _job_of(self, task: int) -> _Job | None:
        return self._blocks.get(task >> BLOCK_BITS)

    def _job_or_raise(self, task: int) -> _Job:
        job = self._blocks.get(task >> BLOCK_BITS)
        if job is None:
            raise KeyError(task)
        return job

    def _modules_in_use(self) -> tuple[str, ...]:
        """The modules that the functions of all open jobs come from: what a new worker had best import at once."""
        names = {getattr(call[0], "__module__", None) for job in self._jobs.values() for call in _calls(job) if call}
        return tuple(sorted(name for name in names if name and name not in ("__main__", "builtins")))

    # ---- Ctrl-C

    def _shield_interrupts(self) -> Callable[[], None]:
        """In the main thread: has SIGINT wait until the machine is consistent again. Returns what restores the
        handler."""
        if threading.get_ident() != self._main_ident or self._local.__dict__.get("shielded"):
            return _nothing
        previous = signal.getsignal(signal.SIGINT)
        if not callable(previous):
            return _nothing

        def interrupt(signum: int, frame: FrameType | None) -> None:
            if self._shield:
                self._interrupted = True
            else:
                previous(signum, frame)

        signal.signal(signal.SIGINT, interrupt)
        self._local.shielded = True

        def restore() -> None:
            signal.signal(signal.SIGINT, previous)
            self._local.shielded = False

        return restore

    # ---- looking in

    def status(self) -> dict[str, Any]:
        """What runs where, what waits for what, and what the store holds. Plain data; for ``headrace status``."""
        with self._lock:
            return observe.status(self._machine, self.settings, self.key_of, self._lane)


_PERFORM: dict[type, Callable[[Runtime, Any, list[Any]], None]] = {
    c.RunAt: Runtime._run_at,
    c.Publish: Runtime._publish,
    c.Revoke: Runtime._revoke,
    c.Stop: Runtime._stop_worker,
    c.Launch: Runtime._launch,
    c.FinishJob: Runtime._finish_job,
    c.FailJob: Runtime._fail_job,
    c.FinishFuture: Runtime._finish_future,
    c.FailFuture: Runtime._fail_future,
    c.CancelFuture: Runtime._cancel_future,
}


def _nothing() -> None: ...


def _calls(job: _Job) -> list[Call]:
    calls = job.calls
    return list(calls.values()) if isinstance(calls, dict) else calls


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", type(fn).__name__)


def _family(fn: Callable[..., Any]) -> Hashable:
    """Calls of one function behave alike; code, not the object, so that a lambda in a loop is one family."""
    return (
        getattr(fn, "__code__", None)
        or f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', type(fn).__name__)}"
    )


_default: Runtime | None = None
_default_lock = threading.Lock()


def default(settings: config.Settings | None = None) -> Runtime:
    """The runtime of this process, made at first use, closed at exit, and forgotten in forked children.

    Args:
        settings: if given and different from those of the present runtime, a new one replaces it, unless it is busy.
    """
    global _default
    with _default_lock:
        current = _default
        if current is not None and not current._closed:
            if settings is None or settings == current.settings or len(current._jobs) > 1 or current._futures:
                return current
            current._stop()
        elif current is None:
            atexit.register(close_default)
        _default = Runtime(settings)
        return _default


def close_default() -> None:
    """Stops the runtime of this process, if there is one; the next use of :func:`default` makes a new one."""
    global _default
    with _default_lock:
        current, _default = _default, None
    if current is not None and current._pid == os.getpid():
        current.shutdown(wait=True)


def _forget_in_child() -> None:
    global _default, _default_lock
    _default = None
    _default_lock = threading.Lock()
    observe.forget()


os.register_at_fork(after_in_child=_forget_in_child)

__all__ = ["HeadraceError", "Observer", "Runtime", "RuntimeFuture", "Stored", "close_default", "default"]
