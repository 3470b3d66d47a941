"""Starts processes that end with this one, and looks at all that descends from them: CPU time, memory, who is there.

Family ── socket ──> keeper.py ──> processes, each in a session of its own
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


class ProcessDied(Exception):
    """A process that should run has ended; the message says how, with the last of what it wrote."""


class Family:
    """Processes started here and everything they start. Not thread-safe.

    Nothing of it survives :meth:`close`, nor this process, not even if this process is killed.
    """

    def __init__(self) -> None:
        self._link, theirs = socket.socketpair()
        with theirs:
            subprocess.run(
                [sys.executable, "-I", str(Path(__file__).with_name("keeper.py")), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={},
                check=True,
            )
        self._lines = self._link.makefile("rw", encoding="utf-8", newline="\n")
        self._keeper = int(json.loads(self._lines.readline())["pid"])
        self._handle = os.pidfd_open(self._keeper)
        self._started: weakref.WeakSet[Process] = weakref.WeakSet()

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        log: Path,
        cwd: Path | None = None,
        user: tuple[int, int] | None = None,
        end_signal: int | None = None,
    ) -> Process:
        """Starts a process in a session of its own.

        Args:
            argv: the command.
            env: its whole environment.
            log: where its output is appended.
            cwd: its directory.
            user: (uid, gid) to become, for which this process must be root.
            end_signal: what it gets first when the family ends without having stopped it; by default only SIGKILL.

        Raises:
            OSError: it cannot be started.
        """
        uid, gid = user or (None, None)
        request = {"argv": list(argv), "env": dict(env), "cwd": str(cwd) if cwd else None, "log": str(log)}
        pid = self._ask("start", **request, user=uid, group=gid, end_signal=end_signal)["pid"]
        process = Process(self, pid, log)
        self._started.add(process)
        return process

    def remove_at_end(self, folder: Path) -> None:
        """Has a folder removed when the family has ended, by whatever way it ends."""
        self._ask("folder", path=str(folder))

    def exit_code(self, pid: int) -> int | None:
        """How a process that was started here ended (negative: the signal); None while it runs."""
        code: int | None = self._ask("code", pid=pid)["code"]
        return code

    def pids(self) -> list[int]:
        """All that live, without the keeper."""
        return [stat.pid for stat in descendants(self._keeper) if not stat.is_zombie]

    def cpu_s(self) -> float:
        """CPU seconds of all that live and ever lived here; what the keeper itself used is in it (nearly nothing)."""
        own = _stat(self._keeper)
        return sum(stat.cpu_s for stat in [*descendants(self._keeper), *([own] if own else [])])

    def pss_bytes(self) -> int:
        """Memory of all that live; what they share counts once (proportional set size)."""
        return sum(map(pss_bytes, self.pids()))

    def close(self) -> None:
        """Kills all that still live and waits until they are gone. Does nothing the second time."""
        if self._handle >= 0:
            self._link.shutdown(socket.SHUT_RDWR)  # also where a fork of this process holds a copy
            self._lines.close()
            self._link.close()
            select.select([self._handle], [], [])
            os.close(self._handle)
            self._handle = -1
            for process in self._started:
                process.wait(0)

    def _ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        self._lines.write(json.dumps({"op": op, **arguments}) + "\n")
        self._lines.flush()
        reply: dict[str, Any] = json.loads(self._lines.readline())
        if "error" in reply:
            raise OSError(reply["error"])
        return reply


class Process:
    """One process of a family. Signals reach it and no other, even when its number has been given away."""

    def __init__(self, family: Family, pid: int, log: Path) -> None:
        self._family = family
        self.pid = pid
        self.log = log
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended at once
            self._handle = -1

    @property
    def is_running(self) -> bool:
        return self._handle >= 0 and not select.select([self._handle], [], [], 0)[0]

    @property
    def exit_code(self) -> int | None:
        return self._family.exit_code(self.pid)

    def send(self, number: int) -> None:
        """Sends a signal; nothing happens if it has ended."""
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def wait(self, timeout_s: float) -> bool:
        """Blocks until it has ended; returns whether it has."""
        if self._handle < 0 or select.select([self._handle], [], [], timeout_s)[0]:
            self._forget()
            return True
        return False

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 15.0) -> bool:
        """Asks it to end and then makes it; returns whether it ended by itself."""
        self.send(number)
        if self.wait(timeout_s):
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """SIGKILL, for this process alone; what it started lives on. Returns when it is gone."""
        self.send(signal.SIGKILL)
        self.wait(60.0)

    def check(self, name: str) -> None:
        """Raises ProcessDied unless it runs."""
        if not self.is_running:
            code = self.exit_code
            raise ProcessDied(f"{name} ended with {code}:\n{self.last_words()}")

    def last_words(self, size_bytes: int = 3000) -> str:
        return self.log.read_bytes()[-size_bytes:].decode(errors="replace") if self.log.exists() else ""

    def _forget(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __del__(self) -> None:
        self._forget()


class Stat:
    """What the kernel says of a process. ``cpu_s`` includes that of descendants which it has waited for."""

    __slots__ = ("cpu_s", "is_zombie", "parent", "pid")

    def __init__(self, pid: int, text: str) -> None:
        fields = text.rpartition(")")[2].split()
        self.pid = pid
        self.is_zombie = fields[0] == "Z"
        self.parent = int(fields[1])
        self.cpu_s = sum(map(int, fields[11:15])) / TICKS


def _stat(pid: int) -> Stat | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return Stat(pid, file.read())
    except OSError:  # it has ended
        return None


def has_ended(pid: int) -> bool:
    """Whether a process has ended, also if nobody has waited for it yet: whoever adopts orphans may take his time."""
    stat = _stat(pid)
    return stat is None or stat.is_zombie


def _stats() -> Iterator[Stat]:
    for name in filter(str.isdigit, os.listdir("/proc")):
        stat = _stat(int(name))
        if stat is not None:
            yield stat


def descendants(pid: int) -> list[Stat]:
    """All below a process, without itself."""
    children: dict[int, list[Stat]] = {}
    for stat in _stats():
        children.setdefault(stat.parent, []).append(stat)
    found: list[Stat] = []
    pending = [pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += [stat.pid for stat in below]
    return found


def pss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"Pss:")) * 1024
    except (OSError, StopIteration):  # it has ended
        return 0


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
