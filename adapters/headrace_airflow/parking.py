"""Tasks that have been quiet for a while, as the daemon keeps them: descriptors and a record, no supervisor.

A supervisor is a process with Airflow in it, for a task that may sleep for hours. It gives a quiet task back
(activity.py) and goes on to another one, or ends. Whatever the task does then (a request, output, its end) is something
to read; a supervisor takes over again and finds it there. In between, one process for all of them tells the API server
that they live (pulse.py); whatever that hears but "go on" is a supervisor's affair, too.

    supervisor ──{"t": "parked", ...} + descriptors──▶ Parking ──{"t": "resume", ...} + the same──▶ a supervisor
                    Parking ──{"t": "beat", id, ti, pid, token, server} / {"t": "rest", id}──▶ pulse
                            ◀──{"t": "token", id, token} / {"t": "wake", id}──
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from headrace_airflow.forks import Child
from headrace_airflow.loop import Loop
from headrace_airflow.wire import Message


class StartPulse(Protocol):
    def __call__(self, hear: Callable[[Message], None], exited: Callable[[int], None]) -> Child: ...


@dataclass(slots=True, eq=False)
class _Parked:
    record: Message
    descriptors: list[int]
    """As they came from the supervisor. As long as the last of them, the zygote's socket, is open, the task lives."""
    ready: select.epoll


class Parking:
    """Watches quiet tasks.

    Args:
        loop: where their descriptors are watched.
        start_pulse: makes the process that sends heartbeats.
        wake: called with a task's key, and whether the API server wants something of it; it shall call ``leave``.
    """

    def __init__(self, loop: Loop, start_pulse: StartPulse, wake: Callable[[str, bool], None]) -> None:
        self._loop = loop
        self._start_pulse = start_pulse
        self._wake = wake
        self._parked: dict[str, _Parked] = {}
        self._pulse: Child | None = None

    def __contains__(self, key: str) -> bool:
        return key in self._parked

    def park(self, key: str, workload: Message, server: str, record: Message, descriptors: list[int]) -> None:
        """Looks after a task from now on.

        Args:
            key: as the daemon knows it.
            workload: what it is.
            server: the URL of its API server.
            record: what a supervisor needs to take over.
            descriptors: the task's; they belong to this object now.
        """
        ready = select.epoll()
        *sockets, _pid_fd, zygote = descriptors
        for fd in (*sockets, zygote):
            ready.register(fd, select.EPOLLIN)
        self._parked[key] = parked = _Parked(record, descriptors, ready)
        self._loop.watch(ready, lambda: self._stir(key, parked))
        if self._pulse is None:
            self._pulse = pulse = self._start_pulse(self._hear, lambda _code: self._pulse_exited(pulse))
        beat = {"id": key, "ti": workload["ti"]["id"], "pid": record["pid"], "token": record["token"], "server": server}
        self._pulse.channel.send({"t": "beat", **beat})

    def leave(self, key: str) -> tuple[Message, list[int]]:
        """Gives a task away: its record, and its descriptors, which belong to the caller now."""
        parked = self._parked.pop(key)
        self._loop.unwatch(parked.ready)
        parked.ready.close()
        if self._pulse is not None:
            self._pulse.channel.send({"t": "rest", "id": key})
            if not self._parked:
                self._loop.forget(self._pulse.channel)  # it ends when it sees that
                self._pulse = None
        return parked.record, parked.descriptors

    def drop(self, key: str) -> None:
        """Ends a task: its zygote kills it when nobody has its socket any more."""
        for fd in self.leave(key)[1]:
            os.close(fd)

    def _stir(self, key: str, parked: _Parked) -> None:
        if self._parked.get(key) is parked:
            self._wake(key, False)

    def _hear(self, message: Message) -> None:
        if (parked := self._parked.get(message["id"])) is None:
            return
        if message["t"] == "token":
            parked.record["token"] = message["token"]
        else:
            self._wake(message["id"], True)

    def _pulse_exited(self, pulse: Child) -> None:
        """Without heartbeats the tasks would be taken for dead: supervisors send them, until it is quiet again."""
        if pulse is self._pulse:
            self._pulse = None
            for key in list(self._parked):
                self._wake(key, False)
