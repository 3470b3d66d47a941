"""A supervisor: runs one workload. It holds the token and talks to the API server; it runs no user code.

daemon ──{"t": "run", workload, server} + zygote's socket──▶ supervisor
daemon ◀──{"t": "started", pid} / {"t": "reported", state} / {"t": "ended", ok, info}── supervisor
daemon ──{"t": "look"}──▶ supervisor: ask the API server now whether the task shall go on
"""

from __future__ import annotations

import signal
import socket
import traceback

from headrace_airflow import internals, processes
from headrace_airflow.wire import Channel


class NotStarted(Exception):
    """The zygote was gone before it forked: nothing has run, nothing was reported."""


def main(daemon: Channel) -> None:
    """A supervisor's whole life."""
    processes.hide_memory()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    received = daemon.wait()
    if received is None:
        return
    message, (fd,) = received
    zygote = Channel(socket.socket(fileno=fd))
    try:
        ended = {"t": "ended", **internals.run_workload(message, zygote, daemon)}
    except NotStarted:
        ended = {"t": "ended", "started": False}
    except Exception as error:
        traceback.print_exc()
        ended = {"t": "ended", "ok": False, "info": f"{type(error).__name__}: {error}"}
    daemon.send(ended)
    daemon.drain(10.0)
