"""The daemon's supervisors: each has one workload, or waits a while for the next one, and then ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headrace_airflow.forks import Child, Forks
from headrace_airflow.loop import Loop
from headrace_airflow.wire import Message

_IDLE_S: Final = 10.0


@dataclass(slots=True, eq=False)
class Supervisor:
    child: Child
    task: str | None = None
    """What it has; ``None``: it is idle."""
    idle_since: float = 0.0


class Supervisors:
    """All that there are.

    Args:
        forks: makes their processes.
        loop: where they are heard.
        hear: takes what one says, and the descriptors that come with it, to be closed.
        lost: called with the task and the exit code of one that has ended by itself.
    """

    def __init__(
        self,
        forks: Forks,
        loop: Loop,
        hear: Callable[[Supervisor, Message, list[int]], None],
        lost: Callable[[str, int], None],
    ) -> None:
        self._forks = forks
        self._loop = loop
        self._hear = hear
        self._lost = lost
        self._known: list[Supervisor] = []

    def __bool__(self) -> bool:
        return bool(self._known)

    def take(self, task: str) -> Supervisor:
        """One for a task: the one that has been idle for the shortest time, or a new one."""
        supervisor = self._idle() or self._start()
        supervisor.task = task
        return supervisor

    def release(self, supervisor: Supervisor) -> None:
        """It has its task no longer, and waits for another one."""
        supervisor.task, supervisor.idle_since = None, time.monotonic()

    def end(self, supervisor: Supervisor) -> None:
        """An idle one is not needed any more."""
        self._loop.forget(supervisor.child.channel)  # it ends when it sees that

    def has_idle(self) -> bool:
        """Whether one could be taken that is there already."""
        return self._idle() is not None

    def retire(self) -> None:
        """Ends those that have waited for long."""
        now = time.monotonic()
        for supervisor in self._known:
            if supervisor.task is None and now - supervisor.idle_since >= _IDLE_S:
                self.end(supervisor)

    def describe(self) -> list[Message]:
        """For people."""
        return [{"pid": supervisor.child.pid, "task": supervisor.task} for supervisor in self._known]

    def _idle(self) -> Supervisor | None:
        idle = (s for s in reversed(self._known) if s.task is None and not s.child.channel.closed)
        return next(idle, None)

    def _start(self) -> Supervisor:
        child = self._forks.fork(
            "supervisor",
            lambda message, fds: self._hear(supervisor, message, fds),
            lambda code: self._exited(supervisor, code),
        )
        supervisor = Supervisor(child)
        self._known.append(supervisor)
        return supervisor

    def _exited(self, supervisor: Supervisor, code: int) -> None:
        self._known.remove(supervisor)
        if supervisor.task is not None:
            self._lost(supervisor.task, code)
