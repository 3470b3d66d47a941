"""The processes lane as the runtime uses it: made with the first launch, given commands under the lock, flushed
outside it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from headrace.config import Settings
from headrace.errors import NOT_STARTED, InternalError
from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.shell.futures import After
from headrace.shell.host import LaneHost
from headrace.shell.interrupts import InterruptShield
from headrace.shell.jobs import Jobs

if TYPE_CHECKING:
    from headrace.lanes.processes.lane import ProcessLane


class Processes:
    """Performs the commands that concern worker processes. What performs one runs under the runtime's lock.

    Args:
        settings: for the lane.
        jobs: the open jobs.
        post: hands an event to the machine.
        aside: has ``fn(argument)`` called in a thread where foreign code may run.
        shield: in which :meth:`flush` is called.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        post: Callable[[e.Event], object],
        aside: Callable[[Callable[[Any], object], Any], None],
        shield: InterruptShield,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._host = LaneHost(jobs, post, self._obituary, aside, shield)
        self.lane: ProcessLane | None = None
        self._no_lane = "lost"  # why there is none, for the obituaries of its workers
        self._queued = False  # the lane has been given something that is not flushed yet

    def launch(self, command: c.Launch, after: After) -> None:
        if self.lane is None:
            try:
                self.lane = self._new_lane()
            except Exception as error:  # no descriptor, no memory: the error says which
                self._no_lane = f"{NOT_STARTED}: {error}"
                after += [functools.partial(self._host.post, e.WorkerDied(worker, None)) for worker in command.workers]
                return
        self.lane.launch(command.workers, self._jobs.modules_in_use())
        self._queued = True

    def _new_lane(self) -> ProcessLane:
        from headrace.lanes.processes.lane import ProcessLane

        return ProcessLane(self._settings, self._host)

    def prepare(self, command: c.Prepare, after: After) -> None:
        assert self.lane is not None
        self.lane.prepare(command.worker, self._jobs.modules_in_use())
        self._queued = True

    def run(self, command: c.RunAt, after: After) -> None:
        assert self.lane is not None
        self.lane.run(command.worker, command.tasks)
        self._queued = True
        job = self._jobs.of(command.tasks[0])
        if job is not None:
            job.tell_started(command.tasks)

    def publish(self, command: c.Publish, after: After) -> None:
        assert self.lane is not None
        self.lane.publish(command.worker, command.task)
        self._queued = True

    def revoke(self, command: c.Revoke, after: After) -> None:
        assert self.lane is not None
        self.lane.revoke(command.worker, command.tasks)
        self._queued = True

    def stop(self, command: c.Stop, after: After) -> None:
        assert self.lane is not None
        self.lane.stop(command.worker, command.kill)
        self._queued = True

    def release(self, command: c.Release, after: After) -> None:
        """Here, in shared memory, and at the workers that hold copies."""
        released, values = self._jobs.release(command.tasks)
        after.append(values.clear)
        lane = self.lane
        if lane is not None:
            for worker in command.workers:
                lane.drop(worker, command.tasks)
                self._queued = True
            self.forget(released)

    def forget(self, tasks: Iterable[int]) -> None:
        """Nobody here will ask for the published values of these tasks any more."""
        if self.lane is not None and tasks:
            self.lane.release(tasks)

    def flush(self) -> None:
        """Sends what is queued; outside the lock, from any thread.

        Raises:
            KeyboardInterrupt: Ctrl-C while something was pickled in the main thread. The rest is still queued.
        """
        lane = self.lane
        if self._queued and lane is not None:
            self._queued = False
            try:
                lane.flush()
            except BaseException:  # see above
                self._queued = True
                raise

    def bring(self, task: int) -> Any:
        """The value of a task that another process has. Blocks."""
        lane = self.lane
        if lane is None:
            raise InternalError(f"the value of task {self._jobs.key_of(task)} is lost")
        try:
            return lane.load(task)
        except Exception as error:  # its unpickling runs users' code, which may raise anything
            from headrace.lanes.processes.failures import name_result

            name_result(error, self._jobs.key_of(task))
            raise

    def detach(self) -> Callable[[float], None]:
        """Forgets the lane, under the lock; what is returned stops it (argument: timeout in seconds), outside it."""
        lane, self.lane, self._no_lane = self.lane, None, "lost"
        return _nothing if lane is None else lane.close

    def _obituary(self, worker: int) -> tuple[str, int]:
        return (self._no_lane, 0) if self.lane is None else self.lane.obituary(worker)


def _nothing(timeout_s: float) -> None: ...
