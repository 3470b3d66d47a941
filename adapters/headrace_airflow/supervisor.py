"""A supervisor: runs one workload after another. It holds their tokens, talks to the API server, runs no user code.

daemon ──{"t": "run", name, workload, server} + zygote's socket──▶ supervisor
daemon ◀──{"t": "started", pid} / {"t": "reported", state} / {"t": "ended", ok, info, last}── supervisor
daemon ──{"t": "look"}──▶ supervisor: ask the API server now whether the task shall go on
"""

from __future__ import annotations

import signal
import socket
import traceback
from typing import Final

from headrace_airflow import internals, processes
from headrace_airflow.wire import Channel, Message

_RUN_HERE: Final = frozenset({"TestConnection"})
"""Workloads whose hooks run in the supervisor itself, as in stock; it takes no other one after such a one."""


class NotStarted(Exception):
    """The zygote was gone before it forked: nothing has run, nothing was reported."""


def main(daemon: Channel) -> None:
    """A supervisor's whole life: until the daemon needs it no longer."""
    processes.hide_memory()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while (received := daemon.wait()) is not None:
        message, fds = received
        if message["t"] == "run":
            processes.set_title(f"headrace supervisor: {message['name']}")
            zygote = Channel(socket.socket(fileno=fds[0]))
            last = message["workload"]["type"] in _RUN_HERE
            daemon.send({"t": "ended", "last": last, **_run(message, zygote, daemon)})
            daemon.drain(10.0)
            zygote.close()
            processes.set_title("headrace supervisor: idle")


def _run(message: Message, zygote: Channel, daemon: Channel) -> Message:
    try:
        return internals.run_workload(message, zygote, daemon)
    except NotStarted:
        return {"started": False}
    except Exception as error:
        traceback.print_exc()
        return {"ok": False, "info": f"{type(error).__name__}: {error}"}
