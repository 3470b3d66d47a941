"""What the processes lane asks for and reports (:class:`headrace.lanes.processes.host.Host`), from the open jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from headrace import companions, pandas_options  # noqa: F401 - so that workers follow these
from headrace.companions import States
from headrace.errors import MustStayHere
from headrace.observe import timeline
from headrace.sched import events as e
from headrace.shell.interrupts import InterruptShield
from headrace.shell.jobs import Job, Jobs
from headrace.task import Call

T = TypeVar("T")


class LaneHost:
    """Thread-safe; called from the lane's io thread and from whatever thread flushes.

    Args:
        jobs: the open jobs.
        post: hands an event to the machine.
        obituary: how a worker ended, and its resident memory in bytes.
        aside: has ``fn(argument)`` called in a thread where foreign code may run.
        shield: in which the lane is called.
    """

    def __init__(
        self,
        jobs: Jobs,
        post: Callable[[e.Event], object],
        obituary: Callable[[int], tuple[str, int]],
        aside: Callable[[Callable[[Any], object], Any], None],
        shield: InterruptShield,
    ) -> None:
        self._jobs = jobs
        self._post = post
        self._obituary = obituary
        self._aside = aside
        self._shield = shield

    def post(self, event: e.Event) -> None:
        """Passes an event on, once those who watch have been told, and what only the shell knows has been added."""
        if isinstance(event, e.WorkerRan):
            self._tell(event)
        elif isinstance(event, e.ValuePublished):
            job = self._jobs.of(event.task)
            if job is not None:
                job.tell_published(event.task, _place_of(event.worker))
        elif isinstance(event, e.TaskUnpicklable):
            job = self._jobs.of(event.task)
            if job is not None and isinstance(job.errors.get(event.task - job.base), MustStayHere):
                event = e.TaskUnpicklable(event.task, event.worker, must_stay=True)
        elif isinstance(event, e.WorkerDied):
            self._note_death(event)
        self._post(event)

    def _note_death(self, event: e.WorkerDied) -> None:
        """For the error of a task that is given up: it took workers down, or none could be started for it."""
        if event.running is not None:
            job = self._jobs.of(event.running)
            if job is not None:
                job.obituaries[event.running - job.base] = self._obituary(event.worker)
        elif not event.expected:
            for job in list(self._jobs.by_number.values()):
                job.last_obituary = self._obituary(event.worker)

    def _tell(self, event: e.WorkerRan) -> None:
        if timeline.recorders or any(job.observer is not None for job in list(self._jobs.by_number.values())):
            place = _place_of(event.worker)
            for span in event.spans:
                job = self._jobs.of(span.task)
                if job is not None:
                    job.tell_finished(span, place)

    def deliver(self, task: int, value: Any) -> None:
        job = self._jobs.of(task)
        if job is not None:
            job.values[task - job.base] = value

    def fail(self, task: int, error: BaseException) -> None:
        job = self._jobs.of(task)
        if job is not None:
            job.errors[task - job.base] = error

    def said(self, task: int, companion: str, said: bytes) -> None:
        """Heard in the thread that waits for the job; nobody waits for futures, so what they say is heard aside."""
        job = self._jobs.of(task)
        if job is None or job is self._jobs.futures:
            self._aside(lambda _: companions.hear(companion, said), None)
        else:
            job.mailbox.put(lambda: companions.hear(companion, said))

    def call_of(self, task: int) -> tuple[Call, int]:
        job = self._job_of(task)
        return job.calls[task - job.base], job.base

    def deps_of(self, task: int) -> tuple[int, ...]:
        job = self._job_of(task)
        base = job.base
        return tuple([base + dep for dep in job.deps[task - base]])

    def value_of(self, task: int) -> Any:
        job = self._job_of(task)
        return job.values[task - job.base]

    def states_of(self, task: int) -> States:
        job = self._jobs.of(task)
        return companions.states() if job is None else job.states()

    def wanted(self, task: int) -> bool:
        job = self._jobs.of(task)
        return job is not None and (job is self._jobs.futures or task - job.base in job.wanted)

    def key_of(self, task: int) -> str:
        return self._jobs.key_of(task)

    def call_foreign(self, fn: Callable[..., T], *args: Any) -> T:
        return self._shield.call_foreign(fn, *args)

    def _job_of(self, task: int) -> Job:
        job = self._jobs.of(task)
        if job is None or job.abandoned:
            raise KeyError(task)
        return job


def _place_of(worker: int) -> str:
    return f"headrace-worker-{worker}"
