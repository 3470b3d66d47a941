"""A node of real processes, daemon to task, for tests that need no Airflow: what leans on it is replaced here.

A DAG file is a Python file, and its path all there is of its bundle. The code of a task is in its workload. A file
``bare_dies`` in the folder FAULTS kills every bare zygote that starts; while ``origin_cannot_fork`` or
``zygotes_cannot_fork`` is there, these are refused what a machine without another process refuses. Nobody has
capabilities, as if he was not root.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from headrace.store.kernel import prctl
from headrace.testing import wait_until
from headrace_airflow import client, daemon, forks, internals, origin, supervisors, task_logging, zygotes
from headrace_airflow.client import Setup
from headrace_airflow.settings import Settings
from headrace_airflow.supervisor import forked_by
from headrace_airflow.wire import Channel, Message

BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import without_airflow; without_airflow.{}(*sys.argv[2:])"
)

_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522


class Node:
    """A daemon, and the scheduler that it has."""

    def __init__(self, folder: Path, rest_s: float, idle_s: float, **settings: Any) -> None:
        self.folder = folder
        self.place = folder / "node"
        self.faults = folder / "faults"
        self.faults.mkdir()
        self._log = folder / "daemon.log"
        ours = {"FAULTS": str(self.faults), "REST_S": str(rest_s), "IDLE_S": str(idle_s)}
        setup = Setup(Settings(**{"cpus": 4.0, "tasks": 4, **settings}), {**os.environ, **ours})
        self.daemon = client.connect_or_launch(self.place, setup, self._log, "scheduler")
        self._submitted = 0

    def submit(self, does: str, file: Path | None = None) -> str:
        self._submitted += 1
        key = str(self._submitted)
        ti = {"dag_id": "dag", "run_id": "run", "task_id": key, "map_index": 0}
        workload = {"type": "ExecuteTask", "ti": ti, "does": does, "log_path": f"{key}.log"}
        message = {"t": "submit", "id": key, "name": key, "workload": workload, "server": ""}
        self.daemon.send({**message, "file": None if file is None else ["", "", str(file)]})
        return key

    def heard(self, kind: str, key: str) -> Message:
        """Waits until the daemon says this of a workload."""
        while True:
            received = self.daemon.wait(30.0)
            assert received is not None, self.log()
            message, _ = received
            if (message["t"], message.get("id")) == (kind, key):
                return message

    def run(self, does: str, file: Path | None = None) -> Message:
        """How a workload ended."""
        return self.heard("ended", self.submit(does, file))

    def ask(self, message: Message) -> Message:
        """What the daemon answers to somebody who is no scheduler."""
        channel = client.connect(self.place, "test")
        assert channel is not None
        try:
            answer = client.ask(channel, message)
            assert answer is not None
            return answer
        finally:
            channel.close()

    def status(self) -> Message:
        return self.ask({"t": "status"})

    def leave(self) -> None:
        """The scheduler goes, and the daemon has seen it."""
        self.daemon.close()
        wait_until(lambda: self.status()["schedulers"] == 0, timeout_s=30)

    def zygote(self, file: Path | None) -> Message:
        """The one of a file, or the bare one."""
        found: list[Any] = [z for z in self.status()["zygotes"] if (z["file"] or [None])[-1] == (file and str(file))]
        (one,) = found
        return one

    def have_bare_ones_die(self) -> None:
        """Until the daemon starts no other one."""
        (self.faults / "bare_dies").touch()
        wait_until(lambda: self.zygote(None)["pid"] != 0, timeout_s=30)
        with contextlib.suppress(ProcessLookupError):  # it may have begun late enough
            os.kill(self.zygote(None)["pid"], signal.SIGKILL)
        wait_until(lambda: "tasks that need the bare zygote fail" in self.log(), timeout_s=30)

    def have_refused(self, who: str) -> None:
        """No process is allowed to the origin, or to the zygotes."""
        (self.faults / f"{who}_cannot_fork").touch()

    def have_allowed(self, who: str) -> None:
        (self.faults / f"{who}_cannot_fork").unlink()

    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        self.daemon.close()
        if (channel := client.connect(self.place, "test")) is not None:
            channel.send({"t": "stop"})
            channel.close()
        wait_until(lambda: not client.running(self.place), timeout_s=30)


def waits_for(gate: Path) -> str:
    """A task that ends once this file is there."""
    return f"import time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)"


def become_daemon(*arguments: str) -> NoReturn:
    _drop_capabilities()
    forks._BOOTSTRAP = BOOTSTRAP.format("become_origin")
    zygotes._REST_S = float(os.environ["REST_S"])
    supervisors._IDLE_S = float(os.environ["IDLE_S"])
    daemon.main(*arguments)


def _drop_capabilities() -> None:
    """For this process and all that it starts; with them, any memory can be read."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if ctypes.CDLL(None, use_errno=True).capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), bytes(24)) < 0:
        raise OSError(ctypes.get_errno(), "capset failed")


def become_origin(fd: str, parent: str) -> None:
    internals.prepare_origin = _prepare_origin
    internals.forbid_database = _die_if_told_to
    internals.hold_parsed = _hold_parsed
    internals.held_dag = lambda _dag_id: None
    internals.run_workload = _run_workload
    internals.run_task = _run_task
    task_logging.prepare = lambda: None
    os.fork = functools.partial(_fork, os.fork, os.getpid())
    origin.main(int(fd), int(parent))


def _fork(fork: Callable[[], int], origin_pid: int) -> int:
    who = "origin" if os.getpid() == origin_pid else "zygotes"
    if Path(os.environ["FAULTS"], f"{who}_cannot_fork").exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()


def _prepare_origin() -> None:
    import headrace_airflow.supervisor
    import headrace_airflow.zygote  # noqa: F401


def _die_if_told_to() -> None:
    """In a zygote, before it knows its file: only bare ones are started while the file is there."""
    if Path(os.environ["FAULTS"], "bare_dies").exists():
        os.kill(os.getpid(), signal.SIGKILL)


def _hold_parsed(_bundle: str, _version: str | None, path: str, _folder: str, begins: Callable[[str], None]) -> str:
    begins(path)
    exec(compile(Path(path).read_text(), path, "exec"), {})
    return ""


def _run_workload(message: Message, zygote: Channel, node: Channel, _resumed: Any) -> Message:
    """In a supervisor."""
    zygote.send({"t": "fork", "does": message["workload"]["does"]})
    pid, pid_fd = forked_by(zygote)
    os.close(pid_fd)
    node.send({"t": "started", "pid": pid})
    ended = zygote.wait()
    code = -signal.SIGKILL if ended is None else ended[0]["code"]
    return {"ok": code == 0, "info": str(code)}


def _run_task(message: Message, _fds: list[int], _forerunner: Any, _tell: Any) -> NoReturn:
    """In a task."""
    exec(message["does"], {"os": os, "sys": sys})
    os._exit(0)
