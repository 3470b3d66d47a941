"""Heartbeats for tasks that are parked: one process for all of them. See parking.py.

Those that are due at the same time are sent side by side, but only a few: so hundreds of tasks keep to their time
although each answer takes some, and the API server has room for others.

It holds the tasks' tokens and runs no user code. What the API server says but "go on" it leaves to a supervisor; while
the API server cannot be reached it tries again, with few tasks' heartbeats at a time, and has supervisors take over
before the scheduler could take the tasks for dead.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from headrace_airflow import internals, processes
from headrace_airflow.wire import Channel, Message

_AT_ONCE: Final = 6
"""How many heartbeats are under way at most: some less than ``internals`` lets through."""
_PATIENCE: Final = 0.4
"""Supervisors take over after this part of the time after which the scheduler gives a task up."""


@dataclass(slots=True)
class _Beat:
    ti: str
    pid: int
    token: str
    server: str
    due: float
    heard: float
    """When the API server last said that the task shall go on."""


class Pulse:
    """Sends what is due until the daemon needs it no longer.

    Args:
        daemon: where the tasks come from.
        sends: each sends a heartbeat: server, token, ti, pid; returns the token for the next one. Raises
            ``internals.Refused`` if the task shall not go on, anything else if the server could not be asked. Blocks.
            As many heartbeats are sent at once as there are of them, none of them in two threads at once.
        every_s: how often, for each task.
        longest_s: after so long without a heartbeat the scheduler gives a task up.
    """

    def __init__(
        self, daemon: Channel, sends: Sequence[Callable[[str, str, str, int], str]], every_s: float, longest_s: float
    ) -> None:
        self._daemon = daemon
        self._sends = sends
        self._every_s = every_s
        self._patience_s = _PATIENCE * longest_s
        self._beats: dict[str, _Beat] = {}

    def run(self) -> None:
        """Serves; returns when the daemon has closed its connection."""
        poll = select.poll()
        poll.register(self._daemon, select.POLLIN)
        with ThreadPoolExecutor(len(self._sends)) as pool:
            while not self._daemon.closed:
                first = heapq.nsmallest(len(self._sends), self._beats.items(), key=lambda item: item[1].due)
                left_s = max(0.0, first[0][1].due - time.monotonic()) if first else None
                if not poll.poll(None if left_s is None else 1000 * left_s):
                    self._beat(pool, first)
                for message, _ in self._daemon.receive():
                    self._take(message)

    def _take(self, message: Message) -> None:
        if message["t"] == "rest":
            self._beats.pop(message["id"], None)
            return
        now = time.monotonic()
        task = (message["ti"], message["pid"], message["token"], message["server"])
        self._beats[message["id"]] = _Beat(*task, due=now + self._every_s, heard=now)

    def _beat(self, pool: ThreadPoolExecutor, first: Sequence[tuple[str, _Beat]]) -> None:
        """Sends those that are due."""
        now = time.monotonic()
        due = [(key, beat) for key, beat in first if beat.due <= now]
        answers = [
            pool.submit(send, beat.server, beat.token, beat.ti, beat.pid)
            for send, (_, beat) in zip(self._sends, due, strict=False)
        ]
        for (key, beat), answer in zip(due, answers, strict=True):
            self._hear(key, beat, answer)

    def _hear(self, key: str, beat: _Beat, answer: Future[str]) -> None:
        try:
            token = answer.result()
        except internals.Refused:
            self._wake(key)
            return
        except Exception:  # out of reach, or broken: it may be back the next time
            self._put_off(beat.server)
            if time.monotonic() - beat.heard > self._patience_s:
                self._wake(key)
            return
        if token != beat.token:
            beat.token = token
            self._daemon.send({"t": "token", "id": key, "token": token})
        beat.heard = time.monotonic()
        beat.due = beat.heard + self._every_s

    def _put_off(self, server: str) -> None:
        """All heartbeats to a server that does not answer come later, in the same order."""
        first = min(beat.due for beat in self._beats.values() if beat.server == server)
        delay_s = max(0.0, time.monotonic() + self._every_s - first)
        for beat in self._beats.values():
            if beat.server == server:
                beat.due += delay_s

    def _wake(self, key: str) -> None:
        del self._beats[key]
        self._daemon.send({"t": "wake", "id": key})


def main(daemon: Channel) -> None:
    """The process's whole life."""
    processes.hide_memory()
    processes.set_title("headrace pulse")
    heartbeats = [internals.heartbeats() for _ in range(_AT_ONCE)]
    _, every_s, longest_s = heartbeats[0]
    Pulse(daemon, [send for send, _, _ in heartbeats], every_s, longest_s).run()
