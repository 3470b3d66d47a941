"""The engine of a runtime: the only place where the parts are put together.

    caller's thread ── run(graph) ──┐                             ┌── RunHere ──> mailbox of a slot (shell/threads.py)
    pool threads ──── SlotRan ──────┼─> lock: Machine.handle() ──>┼── RunAt, Publish, Release, ... ──> ProcessLane
    headrace-io ───── WorkerRan ────┘        (pure, sched/)       ├── FinishJob, FailJob ──> mailbox of the caller
    (lanes/processes)                                             └── FinishFuture, ... ──> a future (shell/futures.py)

Any thread that has an event takes the lock, lets the machine decide, and only *enqueues* what it commanded; what
takes long or runs foreign code (pickling, destructors, future callbacks) happens after the lock has been left.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Collection
from concurrent.futures import Future
from time import perf_counter
from typing import TYPE_CHECKING, Any

from headrace import at_exit, config
from headrace.background import start_aside
from headrace.errors import HeadraceError, InternalError, StreamError, raised_in
from headrace.event_loops import hide_event_loop
from headrace.graph import Graph, resting_collector
from headrace.observe import status, timeline
from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.machine import Machine
from headrace.shell.at_once import Progress, rest_of, run_at_once
from headrace.shell.futures import After, Futures
from headrace.shell.imports import in_import
from headrace.shell.interrupts import InterruptShield
from headrace.shell.jobs import Job, Jobs, Observer, Stored
from headrace.shell.processes import Processes
from headrace.shell.threads import SlotThreads
from headrace.stream.handle import Stream

if TYPE_CHECKING:
    from headrace.shell.pipeline import Pipeline

_ENDED = "this Runtime has been shut down; create a new one"
EXIT_TIMEOUT_S = 1.0
"""So long the end waits for the lane's thread to end its workers."""
_LAUNCH_S_PER_MODULE = 0.4e-3
"""What a worker imports is much of what its owner has: 350 modules with dask alone (0.15 s), 1,300 with its frames."""


class Engine:
    """What does a :class:`headrace.Runtime`'s work; its methods of the same names say what they do.

    Its threads hold the engine, and not the Runtime: so a Runtime that nobody holds any more is noticed, and
    :meth:`drop` is called.

    Args:
        settings: see :class:`headrace.config.Settings`.
    """

    def __init__(self, settings: config.Settings) -> None:
        worker = sys.modules.get("headrace.lanes.processes.worker")
        self._in_worker = worker is not None and worker.in_worker()  # the cores are taken: no pool inside a pool
        self.settings = dataclasses.replace(settings, lane="inline") if self._in_worker else settings
        self._pid = os.getpid()
        self._closed = False  # set to True under the lock where work may come at the same moment
        self._stopped = False  # nothing is decided any more; under the lock
        self._retired = False  # the interpreter ends, and graphs of its last destructors run at once
        self._pipelines: weakref.WeakSet[Pipeline] = weakref.WeakSet()
        self._lock: Any = threading.RLock()  # see _is_deciding
        self._ended = threading.Condition(self._lock)  # a job, when the interpreter ends
        self._shield = InterruptShield()
        self._machine = self._new_machine()
        self._jobs = Jobs(self.settings.lane, self._bring)
        self._threads = SlotThreads(
            self._jobs,
            self._post,
            self._has_slot,
            self.settings,
            self._waits_for,
            self._unfinished,
            self._threads_failed,
        )
        self._futures = Futures(
            self._jobs, self._lock, self._post, self._threads.about_to_wait, self._is_running, self._check_accepting
        )
        self._processes = Processes(self.settings, self._jobs, self._post, self._futures.callbacks.call, self._shield)
        self._performers: dict[type, Callable[[Any, After], None]] = {
            c.Release: self._processes.release,
            c.Expect: self._expect,
            c.RunAt: self._processes.run,
            c.Publish: self._processes.publish,
            c.Revoke: self._processes.revoke,
            c.Stop: self._processes.stop,
            c.Launch: self._processes.launch,
            c.Prepare: self._processes.prepare,
            c.FinishJob: self._end_job,
            c.FailJob: self._end_job,
            c.FinishFuture: self._futures.finish,
            c.FailFuture: self._futures.fail,
            c.CancelFuture: self._futures.cancel,
        }
        status.register(self)
        at_exit.remember(self)

    @property
    def is_open(self) -> bool:
        """Whether it takes work."""
        return not self._closed

    @property
    def is_busy(self) -> bool:
        """Whether it has work, or a future that is not done."""
        return len(self._jobs.by_number) > 1 or not self._futures.all_done

    def _bring(self, task: int) -> Any:
        return self._processes.bring(task)

    def _is_running(self, task: int) -> bool:
        with self._shield, self._lock:
            return self._machine.is_placed(task)

    def _has_slot(self, slot: int) -> bool:
        return slot in self._machine.slots

    def _waits_for(self, task: int) -> tuple[list[int], int | None]:
        with self._shield, self._lock:
            return self._machine.waits_for(task)

    def _unfinished(self, job: int) -> list[int]:
        with self._shield, self._lock:
            return self._machine.unfinished(job)

    def _is_deciding(self) -> bool:
        """Whether the current thread is in the midst of a change. Then it is a destructor that asks: the garbage
        collector calls them at any moment. It gets no further decision now, and must not wait for one."""
        return bool(self._lock._is_owned())

    def _new_machine(self) -> Machine:
        s = self.settings
        return Machine(
            s.num_workers,
            lane=s.lane,
            inline_below_s=s.inline_below_s,
            ahead_s=s.ahead_s,
            max_deaths=s.max_deaths,
            idle_timeout_s=s.idle_timeout_s,
            check=s.check,
        )

    # ---- graphs

    def run(
        self,
        graph: Graph,
        lane: str | None,
        limit: int | None,
        observer: Observer | None,
        rerun: bool,
        keep: bool,
    ) -> list[Any]:
        if self._is_deciding() or sys.is_finalizing():  # then no thread can be started any more
            self._check_open()
            return self._run_alone(graph, keep)
        level = self._shield.level(self._threads.nested)
        show_loop: Callable[[], None] | None = None
        job: Job | None = None
        try:
            self._shield.install()
            with self._shield:
                show_loop = hide_event_loop()
                lane, limit = self._checked_lane(lane), config.limit_of(limit)
                expected_s = None if observer or rerun or lane != "auto" else self._quick_s(graph)
            if expected_s is not None:
                progress = self._run_at_once(graph, expected_s)
                if progress.done == len(graph.calls):
                    return _handed([progress.values[index] for index in graph.outputs], keep)
                graph = rest_of(graph, progress)
            with self._shield:
                job, event = self._open(graph, lane, limit, observer)
            if job is None:
                return self._run_alone(graph, keep)
            values = self._outcome(job, graph.outputs, self._drive(job, event), rerun)
            self._collected(job)
        except BaseException:  # Ctrl-C included: without a caller the job is nobody's
            if job is not None:
                self._abandon(job)
            raise
        finally:
            if show_loop is not None:
                show_loop()
            self._shield.uninstall(level)
        return _handed(values, keep)

    def _checked_lane(self, lane: str | None) -> str:
        self._check_open()
        lane = self.settings.lane if lane is None else config.lane_named(lane)
        return "inline" if self._in_worker else lane

    def _quick_s(self, graph: Graph) -> float | None:
        """How long the graph will take, if it can be run at once."""
        if timeline.recorders:
            return None
        families = graph.families
        if graph.literals:
            families = [f for f, call in zip(families, graph.calls, strict=True) if call is not None]
        with self._lock:
            return self._machine.quick_s(families)

    def _run_at_once(self, graph: Graph, expected_s: float) -> Progress:
        buffer_bytes = self.settings.stream_buffer_bytes
        with self._threads.inside():
            try:
                progress = contextvars.copy_context().run(run_at_once, graph, expected_s, buffer_bytes)
            except BaseException as error:
                if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                    error.with_traceback(error.__traceback__.tb_next.tb_next)  # begins with the task's own frame
                raise
        self._post(e.QuickTasksRan(progress.ran))
        return progress

    def _run_alone(self, graph: Graph, keep: bool) -> list[Any]:
        """In this thread, with no help of any other."""
        context, buffer_bytes = contextvars.copy_context(), self.settings.stream_buffer_bytes
        known = context.run(run_at_once, graph, math.inf, buffer_bytes).values
        return _handed([known[index] for index in graph.outputs], keep)

    def _open(
        self, graph: Graph, lane: str, limit: int | None, observer: Observer | None
    ) -> tuple[Job | None, e.JobSubmitted]:
        """The job of a graph, None when the interpreter ends; and the event that tells the machine."""
        if lane in ("auto", "processes") and in_import():
            lane = "threads"
        job = Job.of_graph(graph, lane, observer, self._bring)
        outputs: list[int] | range = graph.outputs
        pinned: Collection[int] = graph.pinned
        if job.shows_values:
            if lane == "processes":
                outputs = range(len(graph.calls))
            else:
                pinned = range(len(graph.calls))
        job.wanted = set(outputs)
        job.pinned = pinned
        with self._lock:
            is_open = not self._retired
            if is_open:
                self._check_accepting()
                self._jobs.add(job)
        status.touch()
        nested = self._threads.nested
        job.listens = observer is not None and not nested and lane != "inline"
        event = e.JobSubmitted(
            job=job.number,
            base=job.base,
            deps=graph.deps,
            families=graph.families,
            outputs=outputs,
            literals=graph.literals,
            pinned=pinned,
            lane=lane,
            limit=limit or self.settings.num_workers,
            caller=None if job.listens else -job.number,
            nested=nested,
            launch_s=_LAUNCH_S_PER_MODULE * len(sys.modules),
        )
        return job if is_open else None, event

    def _drive(self, job: Job, event: e.JobSubmitted) -> c.FailJob | None:
        """The caller's part: runs what the machine gives to its slot, and calls the observer, until the job is over."""
        caller = event.caller
        if caller is not None:
            self._threads.enter(caller, job.mailbox)
        with resting_collector():
            item: Any = self._post(event, slot=caller)
        while True:
            if item is None:
                item = job.kept.popleft() if job.kept else job.mailbox.get()
            kind = type(item)
            if kind is c.RunHere:
                item = job.context.copy().run(self._threads.run, item)
            elif kind is c.FinishJob:
                return None
            elif kind is c.FailJob:
                failed: c.FailJob = item
                return failed
            elif isinstance(item, BaseException):
                raise item
            else:
                item()
                item = None

    def _outcome(self, job: Job, outputs: list[int], failure: c.FailJob | None, rerun: bool) -> list[Any]:
        """The values of a job that is over; if it has failed, its error is raised."""
        if failure is None:
            return [job.load(index) for index in outputs]
        index = failure.task - job.base
        if rerun and not failure.deaths:
            job.recompute(index)
        raise job.error(index, failure.deaths)

    def _abandon(self, job: Job) -> None:
        """The caller leaves (Ctrl-C, a failing observer): whatever of its job is under way stops, or is ignored."""
        with self._shield:
            job.abandoned = True
            self._post(e.JobCancelled(job.number))
            self._threads.cancel_streams(StreamError("the graph that this stream was part of was cancelled"), job)
            self._collected(job)

    def _collected(self, job: Job) -> None:
        """The caller has taken what it wants: forget the job."""
        with self._shield:
            job.stop_listening()
            self._threads.leave(-job.number)
            with self._lock:
                if not self._jobs.remove(job):
                    return
                if self._retired:
                    self._ended.notify_all()
                self._processes.forget([job.base + index for index in job.wanted])
            self._threads.drop_closed()
            job.errors.clear()  # the frames of their tracebacks lead back to the job

    # ---- futures, and the end

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        self._check_open()
        if sys.is_finalizing():
            raise RuntimeError("a Runtime takes no more work while the interpreter ends: submit before that")
        if not callable(fn):
            raise TypeError(f"submit() needs a function to call, not {fn!r}")
        with self._shield:
            return self._futures.submit(fn, args, kwargs)

    def stream(self, holder: object, stages: tuple[Callable[..., Any], ...]) -> Pipeline:
        """A pipeline that holds ``holder`` for as long as it lives."""
        from headrace.shell.pipeline import Pipeline

        self._check_open()
        pipeline = Pipeline(stages, holder)
        self._pipelines.add(pipeline)
        try:
            self._check_open()  # once more: its end may have come by before this one was there to be closed
        except RuntimeError:
            pipeline.close()
            raise
        return pipeline

    def shutdown(self, wait: bool, cancel_futures: bool = False) -> None:
        forked = self._pid != os.getpid()
        if wait and self._threads.nested and not forked:
            raise RuntimeError("a task cannot wait for the end of the Runtime that runs it: use shutdown(wait=False)")
        if forked:
            self._closed = True
            return
        with self._shield, self._lock:
            self._closed = True
        if cancel_futures:
            self._post(e.TasksCancelled(tuple(self._futures.open)))
        if wait and not self._is_deciding():
            self._stop_when_done()
        else:
            start_aside(self._stop_when_done, "headrace-shutdown")

    def retire(self) -> None:
        """The interpreter ends. Graphs of threads that go on, or of destructors that are called in them, have a moment
        to finish."""
        with self._ended:
            self._retired = True
            self._ended.wait_for(lambda: len(self._jobs.by_number) == 1, EXIT_TIMEOUT_S)
        self.shutdown(wait=True)

    def finish(self) -> None:
        """Blocks until what has been submitted so far is done, and its callbacks have returned; more may be submitted.

        Raises:
            BaseException: out of a signal handler, for Ctrl-C: then it has been stopped.
        """
        try:
            self._futures.wait()
            self._futures.callbacks.wait()
        except BaseException:
            self.stop()
            raise

    def drop(self) -> None:
        """The Runtime is not held by anybody: what was submitted is finished, what is streamed is read, then it ends.

        Called by the garbage collector, at any moment and in any thread, whatever locks it holds.
        """
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        with contextlib.suppress(RuntimeError):  # no thread is left for this process: it stops when the process ends
            start_aside(self._stop_when_unused, "headrace-shutdown")

    def _stop_when_unused(self) -> None:
        self._futures.wait()
        self._threads.wait_for_streams()
        self._stop_when_done()

    def _stop_when_done(self) -> None:
        self._futures.wait()
        self.stop()
        self._futures.callbacks.join()
        at_exit.forget(self)

    def stop(self) -> None:
        """Ends it at once: whoever waits for some of its work gets a RuntimeError. Blocks until all is stopped."""
        self._closed = True  # without the lock: what is still accepted is forgotten below
        for pipeline in list(self._pipelines):
            pipeline.close()
        self._threads.stop_watching()
        self._futures.dropped.close()
        advice = "let it finish before you call shutdown() or leave the with block"
        error = RuntimeError(f"this Runtime was shut down while the graph ran; {advice}")
        with self._shield:
            with self._lock:
                self._stopped = True
                fail_futures, close_lane = self._begin_afresh(error)
            fail_futures()
        close_lane(EXIT_TIMEOUT_S)
        self._futures.callbacks.close()
        self._threads.join()
        status.unregister(self)

    def _check_open(self) -> None:
        if self._closed and not self._retired:
            raise RuntimeError(_ENDED)
        if self._pid != os.getpid():
            raise RuntimeError("this Runtime belongs to the parent process; create one of your own after a fork")

    def _check_accepting(self) -> None:
        """Under the lock, in which the work is taken in: so it cannot be stopped in between."""
        self._check_open()
        if self._stopped:
            raise RuntimeError(_ENDED)

    # ---- events in, commands out

    def _post(self, *events: e.Event, slot: int | None = None) -> c.RunHere | None:
        """Hands events to the machine and starts what it commands. Returns the next batch for ``slot``, if any."""
        if self._is_deciding():
            self._futures.dropped.defer(events)
            return None
        mine: c.RunHere | None = None
        after: After = []
        with self._shield:
            with self._lock:
                if self._stopped:  # whoever waits has been told: nothing may be started that nobody ends
                    return None
                try:
                    mine = self._decide(events, slot, after)
                except BaseException as error:  # whatever it was, nobody knows how far the change has come
                    report = InternalError(f"the scheduler broke: {error!r}")
                    report.__cause__ = error
                    self._crash(report, after)
                    if raised_in(error).partition(".")[0] != "headrace":
                        raise  # the user's code did
            try:
                self._processes.flush()
            finally:
                for action in after:
                    action()
        return mine

    def _decide(self, events: tuple[e.Event, ...], slot: int | None, after: After) -> c.RunHere | None:
        """Under the lock: has the machine take in events, and performs what it commands, but the batch for ``slot``."""
        mine: c.RunHere | None = None
        if self._futures.dropped:
            events = (*self._futures.take_dropped(), *events)
        for event in events:
            for command in self._machine.handle(event, perf_counter()):
                if type(command) is not c.RunHere:
                    self._performers[type(command)](command, after)
                elif self._run_here(command, slot, after):
                    mine = command
        return mine

    # What performs a command runs under the lock, and only enqueues: nothing here may block or call foreign code.

    def _run_here(self, command: c.RunHere, slot: int | None, after: After) -> bool:
        """Whether the batch is for the current thread, which serves ``slot``; another's is put into its mailbox."""
        self._threads.get_ready(command, after)
        if command.slot == slot:
            return True
        self._threads.put(command, after)
        return False

    def _end_job(self, command: c.FinishJob | c.FailJob, after: After) -> None:
        job = self._jobs.by_number.get(command.job)
        if job is not None:
            job.over = True
            job.mailbox.put(command)
            if job.streams and type(command) is c.FailJob:
                self._threads.cancel_streams(StreamError("another task of this stream's graph has failed"), job)

    def _expect(self, command: c.Expect, after: After) -> None:
        job = self._jobs.of(command.task)
        stream = None if job is None else job.values.get(command.task - job.base)
        if type(stream) is Stream:
            stream.expect(command.readers, command.coming)

    def _crash(self, report: BaseException, after: After) -> None:
        """It cannot go on: every waiting caller is told, and the runtime begins afresh, so that it stays usable."""
        fail_futures, close_lane = self._begin_afresh(report)

        def clear_up() -> None:
            fail_futures()
            close_lane(EXIT_TIMEOUT_S)

        try:
            start_aside(clear_up, "headrace-crash")
        except RuntimeError:  # no thread is left for this process
            after.append(clear_up)

    def _threads_failed(self, report: HeadraceError) -> None:
        after: After = []
        with self._lock:
            self._crash(report, after)
        for action in after:
            action()

    def _begin_afresh(self, error: BaseException) -> tuple[Callable[[], None], Callable[[float], None]]:
        """Forgets all work: whoever waits for some gets ``error``.

        Returns:
            What is to be called outside the lock: the first fails all futures, the second stops the workers (argument:
            timeout in seconds).
        """
        for job in self._jobs.by_number.values():
            job.mailbox.put(error)
        fail_futures = self._futures.forsake(error)
        self._threads.cancel_streams(StreamError(f"the stream was not complete when its Runtime ended: {error}"))
        close_lane = self._processes.detach()
        self._threads.dismiss()
        self._machine = self._new_machine()
        self._jobs.reset(self.settings.lane)
        return fail_futures, close_lane

    # ---- looking in

    def status(self) -> dict[str, Any]:
        with self._lock:
            return status.snapshot(self._machine, self.settings, self._jobs.key_of, self._processes.lane)


def _handed(values: list[Any], keep: bool) -> list[Any]:
    """What the caller gets: values, or handles on them."""
    return [Stored(value) for value in values] if keep else values
