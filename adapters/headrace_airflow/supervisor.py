"""A supervisor: runs one workload after another. It holds their tokens, talks to the API server, runs no user code.

daemon ──{"t": "run", name, workload, server} + zygote's socket──▶ supervisor
daemon ◀──{"t": "started", pid} / {"t": "reported", state} / {"t": "ended", ok, info, last}── supervisor
daemon ──{"t": "look"}──▶ supervisor: ask the API server now whether the task shall go on

A task that is quiet does not keep a supervisor: the daemon looks after it (parking.py) and has one go on later.

daemon ◀──{"t": "parked", ...} + the task's sockets, its pidfd, zygote's socket── supervisor
daemon ──{"t": "resume", name, workload, server, parked, look} + the same──▶ supervisor
"""

from __future__ import annotations

import os
import signal
import socket
import traceback
from typing import Final, NamedTuple

from headrace_airflow import internals, processes
from headrace_airflow.wire import Channel, Message

_RUN_HERE: Final = frozenset({"TestConnection"})
"""Workloads whose hooks run in the supervisor itself, as in stock; it takes no other one after such a one."""


class NotStarted(Exception):
    """The zygote was gone before it forked: nothing has run, nothing was reported."""


class Refused(Exception):
    """The zygote could not fork: nothing has run, nothing was reported. It goes on with the tasks that it has."""


class Parked(BaseException):
    """A task that runs has been quiet. No ``Exception``: stock must not take it for a failure.

    Args:
        record: what a supervisor needs to go on.
        sockets: the task's, in the order in which the zygote gets them.
        pid_fd: the task's.
    """

    def __init__(self, record: Message, sockets: list[socket.socket], pid_fd: int) -> None:
        super().__init__()
        self.record = record
        self.sockets = sockets
        self.pid_fd = pid_fd

    def hand_over(self, daemon: Channel, zygote: Channel) -> None:
        """Gives the task to the daemon."""
        descriptors = [*(sock.fileno() for sock in self.sockets), self.pid_fd, zygote.fileno()]
        daemon.send({"t": "parked", **self.record}, descriptors)
        daemon.drain(10.0)
        for sock in self.sockets:
            sock.close()
        os.close(self.pid_fd)


class Resumed(NamedTuple):
    """A task that was parked; ``look``: the API server wants something of it."""

    record: Message
    sockets: list[socket.socket]
    pid_fd: int
    look: bool


def main(daemon: Channel) -> None:
    """A supervisor's whole life: until the daemon needs it no longer."""
    processes.hide_memory()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while (received := daemon.wait()) is not None:
        message, fds = received
        if message["t"] in ("run", "resume"):
            processes.set_title(f"headrace supervisor: {message['name']}")
            *task, zygote_fd = fds
            zygote = Channel(socket.socket(fileno=zygote_fd))
            try:
                last = message["workload"]["type"] in _RUN_HERE
                daemon.send({"t": "ended", "last": last, **_run(message, zygote, daemon, task)})
                daemon.drain(10.0)
            except Parked as parked:
                parked.hand_over(daemon, zygote)
            zygote.close()
            processes.set_title("headrace supervisor: idle")


def _run(message: Message, zygote: Channel, daemon: Channel, task: list[int]) -> Message:
    resumed = None
    if message["t"] == "resume":
        *sockets, pid_fd = task
        resumed = Resumed(message["parked"], [socket.socket(fileno=fd) for fd in sockets], pid_fd, message["look"])
    try:
        return internals.run_workload(message, zygote, daemon, resumed)
    except NotStarted:
        return {"started": False}
    except Refused as refusal:
        info = f"No process could be started for the task: {refusal}"
        return {"ok": False, "info": info, "log_path": message["workload"].get("log_path")}
    except Exception as error:  # of one workload: the supervisor goes on to the next
        traceback.print_exc()
        return {"ok": False, "info": f"{type(error).__name__}: {error}"}


def forked_by(zygote: Channel) -> tuple[int, int]:
    """The answer to a request for a task: its pid, and a pidfd, to be closed. Blocks until it comes.

    Raises:
        NotStarted: the zygote is gone.
        Refused: it could not fork.
    """
    answer = zygote.wait()
    if answer is None:
        raise NotStarted
    message, fds = answer
    if message["t"] == "refused":
        raise Refused(message["why"])
    (pid_fd,) = fds
    return message["pid"], pid_fd
