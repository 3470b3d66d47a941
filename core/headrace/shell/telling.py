"""What those who watch a job hear of a batch: that a task begins, and that it has run.

An observer is called in its caller's thread, so what is to be said goes into the caller's mailbox. A caller that runs
the batch itself looks into it before each task. One that does nothing but listen is waited for: a pool thread that went
on with the GIL would not be heard for 5 ms, and what a profiler is told in one go seems to have taken no time.
"""

from __future__ import annotations

import math
import threading
from contextlib import suppress
from time import perf_counter
from typing import Final

from headrace.lanes.slots import Batch
from headrace.sched.events import Span
from headrace.shell.jobs import Job

LISTEN_EVERY_S: Final = 100e-6
"""Changing threads costs some 20 µs: tasks that are quicker than this are told in groups."""


class Teller:
    """Tells of one batch, in the thread that runs it: made when the batch begins, called after each task."""

    def __init__(self, job: Job, batch: Batch, budget_s: float) -> None:
        self._job = job
        self._batch = batch
        self._place = threading.current_thread().name
        self._told: int | None = None  # the last task that was said to begin
        self._ends_s = math.inf
        self._heard_s = -math.inf
        self._tell_next(perf_counter())
        self._ends_s = perf_counter() + budget_s

    def __call__(self, span: Span) -> None:
        if span.task != self._told:  # it has begun at the very end of the budget
            self._job.tell_started((span.task,))
        self._job.tell_finished(span, self._place)
        self._tell_next(span.start_s + span.wall_s)

    def _tell_next(self, now_s: float) -> None:
        """Says that the next task begins, if there is one: what is left at the end of the budget is given back."""
        job, batch = self._job, self._batch
        begins = bool(batch.pending) and now_s <= self._ends_s
        if begins:
            with suppress(IndexError):  # the watch thread was quicker
                self._told = batch.pending[0]
                job.tell_started((self._told,))
        if batch.slot < 0:
            job.call_observer()
        elif begins and now_s > self._heard_s + LISTEN_EVERY_S:
            job.let_listen()
            self._heard_s = perf_counter()
