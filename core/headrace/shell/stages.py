"""The streams of a runtime: pumps them, stops them, and looks for circles of waits.

    run_batch ── Opening ──> pool thread: goes on itself            ──> StageBegan, StreamOpened, StageEnded
                       └───> caller: a new thread; lane inline: whoever reads

A generator's first item opens its stream. Its thread then goes on, whether its job is over or not, until the generator
ends or nobody wants the rest.
"""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from types import AsyncGeneratorType
from typing import Any

from headrace.errors import MustStayHere, StreamError
from headrace.lanes.slots import Batch, Opening
from headrace.lanes.stages.pool import Pool
from headrace.observe import timeline
from headrace.sched import events as e
from headrace.shell.attempts import streams_in
from headrace.shell.jobs import Job, Jobs
from headrace.shell.moving import Moving
from headrace.stream.gate import Gate
from headrace.stream.handle import NOBODY, Stream, again, for_task
from headrace.stream.source import Source
from headrace.stream.steps import steps_of
from headrace.stream.waits import find_circle

Node = int | tuple[str, int]
"""A thread, or ("task", its id) of a task that has not begun."""


def pulled(name: str, budget_bytes: int, opening: Opening) -> Stream:
    """A stream whose readers step the generator."""
    steps = steps_of(opening.value)
    return Stream(Source(name, budget_bytes, steps=steps, again=again(opening.fn, opening.args, opening.kwargs)))


class Stages:
    """The streams that are being made in this process. Thread-safe.

    Args:
        budget_bytes: of each.
        post: hands events to the machine.
        about_to_wait: called in a thread that will wait for a stream.
        holds_up: whom a task that has not begun waits for; a task that it waits for may run in a thread.
        unfinished: the tasks of a job that its caller still waits for.
        jobs: the open jobs.
        most_processes: for stages in lane ``auto``.
        max_deaths: after how many deaths of its process a stage is given up.
        idle_timeout_s: after which a stage process with nothing to do is ended.
    """

    def __init__(
        self,
        budget_bytes: int,
        post: Callable[..., object],
        about_to_wait: Callable[[], None],
        holds_up: Callable[[int], Iterable[Node]],
        unfinished: Callable[[int], list[int]],
        jobs: Jobs,
        most_processes: int,
        max_deaths: int,
        idle_timeout_s: float,
    ) -> None:
        self._budget_bytes = budget_bytes
        self._post = post
        self._holds_up = holds_up
        self._unfinished = unfinished
        self.about_to_wait = about_to_wait
        self.waiting: dict[int, tuple[Source, int]] = {}
        self._live: dict[Source, Job] = {}
        self._ended = threading.Condition()
        self._feeders: dict[int, int] = {}  # thread that reads for a stage elsewhere → that stage's thread here
        self._jobs = jobs
        self._pool = Pool(budget_bytes, idle_timeout_s)
        self._moving = Moving(
            most_processes, self._pool, max_deaths, about_to_wait, self._feeds, lambda: list(self._live)
        )
        self._threads: set[threading.Thread] = set()

    def open(
        self, job: Job, batch: Batch, opening: Opening
    ) -> Callable[[], e.StageEnded | e.StageBegan | e.TaskDeferred]:
        """Makes a stream of what a task has returned, or waits for its gate.

        Returns:
            What remains to be done for it in this thread; it returns the event after which the slot is free.
        """
        index, value, slot = opening.task - job.base, opening.value, batch.slot
        in_caller = slot < 0
        if type(value) is Gate:
            job.values[index] = None
            value.when_open(functools.partial(self._gate_opened, job, opening.task))
            return lambda: e.TaskDeferred(slot, opening.task, batch.take_spans(), batch.end())
        if type(value) is Stream or (job.lane == "inline" and not _is_async(value)):
            name = job.key(index)
            stream = value if type(value) is Stream else pulled(name, self._budget_bytes, opening)
            self._publish(job, index, stream, slot)
            began = e.StageBegan(slot, opening.task, batch.take_spans(), batch.end(), stays=True)
            self._post(began, e.StreamOpened(opening.task))
            return lambda: e.StageEnded(slot, opening.task, 0.0)
        source = Source(job.key(index), self._budget_bytes, self, again=again(opening.fn, opening.args, opening.kwargs))
        self._publish(job, index, Stream(source), slot)
        self._live[source] = job
        if job.cancelled is not None or not self._jobs.is_open(job):
            source.cancel(job.cancelled or StreamError("nobody waits for this stream any more"))
        steps, task, key = steps_of(value), opening.task, job.keys[index]
        began = e.StageBegan(slot, task, batch.take_spans(), batch.end(), stays=not in_caller)
        if in_caller:
            self._start(lambda: self._post(self._pump(source, steps, 0, task, key)))
            return lambda: began
        self._post(began)
        return lambda: self._pump(source, steps, slot, task, key)

    def _gate_opened(self, job: Job, task: int, error: BaseException | None) -> None:
        opened = e.GateOpened(task)
        if error is None:
            self._post(opened)
        else:
            job.errors[task - job.base] = error
            self._post(e.TaskRaised(task, e.HERE), opened)

    def serve(self, job: Job) -> None:
        """From now on, those tasks of a job that run in this process are looked at before they begin."""
        job.stage = functools.partial(self._stage, job)
        job.streams = True

    def _stage(self, job: Job, task: int, fn: Callable[..., Any], args: Any) -> tuple[Any, Any]:
        """A stage looks at its producers before it begins, or goes elsewhere in any case (lane ``processes``)."""
        args = [for_task(arg, task) for arg in args]
        streams, index, forced = streams_in(args), task - job.base, job.lane == "processes"
        stays = index in job.pinned or (not streams and isinstance(job.errors.get(index), MustStayHere))
        live = any(stream.source in self._live for stream in streams)
        if not live and (stays or not forced):
            return fn, args
        key = job.key(index)  # asked now: what is made again may be so when the job has forgotten the task
        return functools.partial(self._call_here if stays else self._call, key, forced, fn), args

    def _call(self, key: str, forced: bool, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._moving.call(key, forced, fn, args, kwargs)

    def _call_here(self, key: str, _: bool, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self._moving.call_here(key, fn, args, kwargs)

    def _feeds(self, feeder: int, thread: int) -> None:
        if thread:
            self._feeders[feeder] = thread
        else:
            self._feeders.pop(feeder, None)

    def _publish(self, job: Job, index: int, stream: Stream, slot: int) -> None:
        if job.lane == "auto":
            self.serve(job)
        job.streams = True
        job.values[index] = stream
        job.tell_opened(index, threading.current_thread().name)
        if slot < 0:
            job.call_observer()

    def _pump(self, source: Source, steps: Iterator[Any], slot: int, task: int, key: Any) -> e.StageEnded:
        began_s = perf_counter()
        try:
            source.pump(steps, lambda: self._post(e.StreamOpened(task)))
        finally:
            with self._ended:
                self._live.pop(source, None)
                self._ended.notify_all()
        took_s = perf_counter() - began_s
        if timeline.recorders:
            timeline.record([(key, threading.current_thread().name, began_s, took_s)])
        return e.StageEnded(slot, task, max(0.0, took_s - source.waited_s))

    def _start(self, doing: Callable[[], object]) -> None:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(doing,), name="headrace-stage", daemon=True)
        self._threads = {thread for thread in self._threads if thread.is_alive()} | {thread}
        thread.start()

    def wait(self) -> None:
        """Blocks until no stream is being made any more."""
        with self._ended:
            self._ended.wait_for(lambda: not self._live)

    def cancel(self, error: BaseException, job: Job | None = None) -> None:
        """Ends the streams of a job, or all."""
        for source, its_job in list(self._live.items()):
            if job is None or its_job is job:
                source.cancel(error)

    def abandon(self, task: int) -> None:
        """A task has failed: it reads no more, though its traceback may hold what it read with."""
        for source in list(self._live):
            source.consumer_failed(task)

    def join(self, timeout_s: float) -> None:
        """Ends the stage processes; waits a moment for the threads of stages that were cancelled."""
        self._pool.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout_s)

    # ---- circles of waits

    def waited_long(self, source: Source) -> None:
        """If the current thread waits in a circle, one of the full buffers in it grows."""
        start: Node = threading.get_ident()
        circle = set(find_circle(start, self._waits_for))
        full = [source for source in list(self._live) if source.thread in circle and source.out_of_credit]
        if full:
            min(full, key=lambda source: source.flow.budget_bytes).grow()

    def _waits_for(self, node: Node) -> Iterable[Node]:
        if isinstance(node, tuple):
            return self._holds_up(node[1])
        awaited = self.waiting.get(node)
        if awaited is not None:
            return [] if awaited[0].thread is None else [awaited[0].thread]
        for source in list(self._live):
            if source.thread == node and source.out_of_credit:
                threads, tasks = source.holders()
                if not (threads or tasks):
                    threads, tasks = self._who_may_read(source)
                return [*threads, *[("task", task) for task in tasks]]
        if node in self._feeders:
            return [self._feeders[node]]
        return [feeder for feeder, thread in list(self._feeders.items()) if thread == node and feeder in self.waiting]

    def _who_may_read(self, source: Source) -> tuple[list[int], list[int]]:
        """Of a stream that only has handles: who reads something else first, and what its job's caller waits for."""
        job = self._live.get(source)
        threads = [reader for reader, (_, task) in list(self.waiting.items()) if task == NOBODY]
        return threads, self._unfinished(job.number) if job is not None and not job.over else []


def _is_async(value: Any) -> bool:
    return type(value) is AsyncGeneratorType or hasattr(getattr(value, "steps", None), "__anext__")
