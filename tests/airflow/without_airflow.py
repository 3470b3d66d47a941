"""A node of real processes, daemon to task, for tests that need no Airflow: what leans on it is replaced here.

A DAG file is a Python file, and its path all there is of its bundle. The code of a task is in its workload. A file
``bare_dies`` in the folder FAULTS kills every bare zygote that starts.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from headrace_airflow import daemon, forks, internals, origin, task_logging, zygotes
from headrace_airflow.supervisor import NotStarted
from headrace_airflow.wire import Channel, Message

BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import without_airflow; without_airflow.{}(*sys.argv[2:])"
)


def become_daemon(*arguments: str) -> NoReturn:
    forks._BOOTSTRAP = BOOTSTRAP.format("become_origin")
    zygotes._REST_S = float(os.environ["REST_S"])
    daemon.main(*arguments)


def become_origin(fd: str, parent: str) -> None:
    internals.prepare_origin = _prepare_origin
    internals.forbid_database = _die_if_told_to
    internals.hold_parsed = _hold_parsed
    internals.held_dag = lambda _dag_id: None
    internals.run_workload = _run_workload
    internals.run_task = _run_task
    task_logging.prepare = lambda: None
    origin.main(int(fd), int(parent))


def _prepare_origin() -> None:
    import headrace_airflow.supervisor
    import headrace_airflow.zygote  # noqa: F401


def _die_if_told_to() -> None:
    """In a zygote, before it knows its file: only bare ones are started while the file is there."""
    if Path(os.environ["FAULTS"], "bare_dies").exists():
        os.kill(os.getpid(), signal.SIGKILL)


def _hold_parsed(_bundle: str, _version: str | None, path: str, begins: Callable[[str], None]) -> str:
    begins(path)
    exec(compile(Path(path).read_text(), path, "exec"), {})
    return ""


def _run_workload(message: Message, zygote: Channel, node: Channel, _resumed: Any) -> Message:
    """In a supervisor."""
    zygote.send({"t": "fork", "does": message["workload"]["does"]})
    if (forked := zygote.wait()) is None:
        raise NotStarted
    told, (pid_fd,) = forked
    os.close(pid_fd)
    node.send({"t": "started", "pid": told["pid"]})
    ended = zygote.wait()
    code = -signal.SIGKILL if ended is None else ended[0]["code"]
    return {"ok": code == 0, "info": str(code)}


def _run_task(message: Message, _fds: list[int], _forerunner: Any, _tell: Any) -> NoReturn:
    """In a task."""
    exec(message["does"], {"os": os, "sys": sys})
    os._exit(0)
