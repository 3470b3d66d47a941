"""Heartbeats for tasks that are parked: one process for all of them, and one connection. See parking.py.

It holds their tokens and runs no user code. What the API server says but "go on" it leaves to a supervisor; while the
API server cannot be reached it tries again, with one task's heartbeat at a time, and has supervisors take over before
the scheduler could take the tasks for dead.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headrace_airflow import internals, processes
from headrace_airflow.wire import Channel, Message

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
    """Sends what is due, one after another, until the daemon needs it no longer.

    Args:
        daemon: where the tasks come from.
        send: sends a heartbeat: server, token, ti, pid; returns the token for the next one. Raises
            ``internals.Refused`` if the task shall not go on, anything else if the server could not be asked. Blocks.
        every_s: how often, for each task.
        longest_s: after so long without a heartbeat the scheduler gives a task up.
    """

    def __init__(
        self, daemon: Channel, send: Callable[[str, str, str, int], str], every_s: float, longest_s: float
    ) -> None:
        self._daemon = daemon
        self._send = send
        self._every_s = every_s
        self._patience_s = _PATIENCE * longest_s
        self._beats: dict[str, _Beat] = {}

    def run(self) -> None:
        """Serves; returns when the daemon has closed its connection."""
        poll = select.poll()
        poll.register(self._daemon, select.POLLIN)
        while not self._daemon.closed:
            key = min(self._beats, key=lambda key: self._beats[key].due, default=None)
            left_s = None if key is None else max(0.0, self._beats[key].due - time.monotonic())
            if not poll.poll(None if left_s is None else 1000 * left_s) and key is not None:
                self._beat(key, self._beats[key])
            for message, _ in self._daemon.receive():
                self._take(message)

    def _take(self, message: Message) -> None:
        if message["t"] == "rest":
            self._beats.pop(message["id"], None)
            return
        now = time.monotonic()
        task = (message["ti"], message["pid"], message["token"], message["server"])
        self._beats[message["id"]] = _Beat(*task, due=now + self._every_s, heard=now)

    def _beat(self, key: str, beat: _Beat) -> None:
        try:
            token = self._send(beat.server, beat.token, beat.ti, beat.pid)
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
    Pulse(daemon, *internals.heartbeats()).run()
