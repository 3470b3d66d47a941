"""A process that starts others and outlives none of them: when its owner goes, all that it started goes too.

Run as a script, not imported: it needs nothing but the standard library. Its owner talks to it over the socket whose
descriptor is the only argument, a line of JSON for a request and one for the reply. It is a subreaper, so every
descendant stays below it, however often it forks and in whatever session: that is how none is missed at the end, and
why its own CPU time plus that of the living is the CPU time of all that ever ran. It is no child of its owner's, who
may count his children and wait for them.

    owner ── socket ──> keeper ──> api-server
        (closed, or died)    ├─────> scheduler ──> workers ──> tasks
                           └─────> what these leave behind
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 5.0


def main(descriptor: int) -> None:
    """Serves requests until the socket closes, then kills every descendant and removes the folders it was told of."""
    if os.fork():
        os._exit(0)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        # A terminal's Ctrl-C is for the owner. Not SIG_IGN, which those that are started would inherit.
        signal.signal(number, lambda *unused: None)
    wake, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    keeper = Keeper()
    with socket.socket(fileno=descriptor) as link, link.makefile("rw", encoding="utf-8", newline="\n") as lines:
        lines.write(json.dumps({"pid": os.getpid()}) + "\n")
        lines.flush()
        while True:
            readable, _, _ = select.select([link, wake], [], [])
            if wake in readable:
                wake.recv(4096)
                keeper.reap()
            if link in readable:
                line = lines.readline()  # requests are whole lines, one at a time: nothing stays in the buffer
                if not line:
                    break
                try:
                    reply = keeper.serve(json.loads(line))
                except OSError as error:
                    reply = {"error": str(error)}
                try:
                    lines.write(json.dumps(reply) + "\n")
                    lines.flush()
                except OSError:
                    break
    keeper.end()


class Keeper:
    def __init__(self) -> None:
        self._codes: dict[int, int] = {}
        self._gentle: dict[int, int] = {}
        self._folders: list[str] = []

    def serve(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "start":
            return {"pid": self._start(request)}
        if request["op"] == "code":
            self.reap()
            return {"code": self._codes.get(request["pid"])}
        if request["op"] == "folder":
            self._folders.append(request["path"])
            return {}
        raise ValueError(request["op"])

    def _start(self, request: dict[str, Any]) -> int:
        identity: dict[str, Any] = {}
        if request["user"] is not None:
            identity = {"user": request["user"], "group": request["group"], "extra_groups": []}
        with open(request["log"], "ab") as log:
            process = subprocess.Popen(
                request["argv"],
                env=request["env"],
                cwd=request["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **identity,
            )
        process.returncode = 0  # reaped below, with everybody else: Popen shall not try to
        if request["end_signal"] is not None:
            self._gentle[process.pid] = request["end_signal"]
        return process.pid

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])

    def end(self) -> None:
        """Kills round after round, since what is killed may have been about to fork."""
        self._ask_gently()
        while children := _children(os.getpid()):
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.reap()
            time.sleep(0.005)  # orphans of the killed become children of this process
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _ask_gently(self) -> None:
        """A database that is killed leaves System V shared memory behind, so it is asked first, for a bounded time."""
        for pid, number in self._gentle.items():
            if pid not in self._codes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        deadline = time.monotonic() + GRACE_S
        while self._gentle.keys() - self._codes.keys() and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.005)


def _children(parent: int) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
            if int(file.read().rpartition(")")[2].split()[1]) == parent:
                found.append(int(name))
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]))
