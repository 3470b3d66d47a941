"""The driver's end of a child process: requests with a time limit, the end of a whole process tree, its memory."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from headrace.obituary import describe_exit

SAMPLE_S = 0.075
"""How often memory is looked at. A look walks the page tables: about a millisecond for every 400 MB."""
MARK = "HEADRACE_BENCH_CHILD"
BOOTSTRAP = "import sys; from headrace_bench.child import main; main(int(sys.argv[1]))"
APART = Path(__file__).with_name("apart")
"""On the path of children and of what they start; see the package in it."""
SHARED_MEMORY = ("/memfd:", "/dev/shm/")
"""How the kernel names files that are memory. The rest of what it counts as such has no file (``Pss_Shmem``)."""


class ChildFailed(Exception):
    """The child replied with an error; the message is the error in one line."""


class ChildDied(ChildFailed):
    """The child's process ended; it and its tree are gone when this is raised."""


class BoundExceeded(ChildFailed):
    """No reply in time; the child and its tree were killed."""


class ChildProcess:
    """A child that serves one scheduler. Not thread-safe. Ends with :meth:`close` or :meth:`kill`, or as a context."""

    def __init__(self) -> None:
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the child
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOTSTRAP, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **dict([self._mark.split("=")]), "PYTHONPATH": _path_of_children()},
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
        self._link = ours
        self._unread = b""
        self.peak_bytes = 0

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *unused: object) -> None:
        self.kill()

    def request(self, op: str, *, limit_s: float, sample: bool = False, **arguments: Any) -> dict[str, Any]:
        """Sends one request and waits for its reply.

        Args:
            op: what is asked for; see :mod:`headrace_dask.bench.child`.
            limit_s: seconds until the child and everything it started are killed.
            sample: look at the memory of the process tree meanwhile and keep the largest in ``peak_bytes``.
            arguments: the rest of the request.

        Raises:
            ChildFailed: the child says so; it can be used further.
            ChildDied: the child is gone.
            BoundExceeded: the time is up; the child is gone.
        """
        end_s = perf_counter() + limit_s
        try:
            self._link.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
            reply = self._receive(end_s, sample)
        except ConnectionError:
            reply = None
        if reply is None:
            raise ChildDied(self._last_words())
        if "error" in reply:
            raise ChildFailed(reply["error"])
        return reply

    def _receive(self, end_s: float, sample: bool) -> dict[str, Any] | None:
        while b"\n" not in self._unread:
            left_s = end_s - perf_counter()
            if left_s <= 0:
                self.kill()
                raise BoundExceeded("did not finish in time")
            readable, _, _ = select.select([self._link], [], [], min(left_s, SAMPLE_S) if sample else left_s)
            if sample:
                self.peak_bytes = max(self.peak_bytes, tree_pss_bytes(self._process.pid))
            if readable:
                data = self._link.recv(1 << 20)
                if not data:
                    return None
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _last_words(self) -> str:
        """How the process ended, with the last line that it wrote."""
        try:
            how = describe_exit(self._process.wait(5))
        except subprocess.TimeoutExpired:
            how = "hung up"
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 2000))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        self.kill()
        return f"process died, {how}" + (f": {lines[-1][:200]}" if lines else "")

    def close(self, limit_s: float = 15.0) -> None:
        """Ends the scheduler in an orderly way, and then whatever is left of it."""
        if self._link.fileno() >= 0:
            try:
                self.request("close", limit_s=limit_s)
                self._process.wait(limit_s)
            except (ChildFailed, subprocess.TimeoutExpired):
                pass
        self.kill()

    def kill(self) -> None:
        """Ends the child and all its descendants. Does nothing the second time."""
        if self._link.fileno() < 0:
            return
        kill_family(self._process, self._mark)
        self._link.close()
        self._log.close()


def _path_of_children() -> str:
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(APART)]))


def descendants(pid: int) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
        return found
    except psutil.NoSuchProcess:
        return []


def marked(mark: str) -> list[psutil.Process]:
    """Processes with this text in their environment: finds those whose parent is gone, too."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in Path("/proc", pid, "environ").read_bytes().split(b"\0"):
                found.append(psutil.Process(int(pid)))
        except (OSError, psutil.NoSuchProcess):
            continue  # it has ended, or is another user's
    return found


def is_resource_tracker(process: psutil.Process) -> bool:
    """Whether it is multiprocessing's or loky's, which takes away what its users leave in ``/dev/shm``."""
    try:
        return any("resource_tracker import main" in word for word in process.cmdline())
    except psutil.Error:
        return False


def kill_family(root: subprocess.Popen[bytes], mark: str) -> None:
    """Kills a process, all that descends from it, and all that bears its mark; returns when they are gone.

    Resource trackers get the time to take away what the others leave: the semaphores of a pool have names.
    """
    while users := [process for process in _family(root, mark) if not is_resource_tracker(process)]:
        _kill(users)
        _, alive = psutil.wait_procs(users, timeout=5)
        if alive:
            break  # not even SIGKILL ends what hangs in the kernel
    root.kill()
    root.wait()
    _, alive = psutil.wait_procs(_family(root, mark), timeout=5)
    _kill(alive)


def _family(root: subprocess.Popen[bytes], mark: str) -> set[psutil.Process]:
    return {*descendants(root.pid), *marked(mark)}


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


def tree_pss_bytes(pid: int) -> int:
    """Memory of a process and all its descendants; what they share counts once (proportional set size).

    A page of shared memory is in a process' set from when that process first touches it. Where nobody has yet, as with
    a result that was written and not read, it counts by the file it is in, for whoever has that open.
    """
    private = mapped = 0
    files: dict[tuple[int, int], int] = {}
    for one in (pid, *(process.pid for process in descendants(pid))):
        try:
            pss_bytes, shared_bytes = _pss_bytes(one)
            files.update(_shared_files(one))
        except (OSError, KeyError):
            continue  # it has ended
        private += pss_bytes - shared_bytes
        mapped += shared_bytes
    return private + max(mapped, sum(files.values()))


def _pss_bytes(pid: int) -> tuple[int, int]:
    """(all, what of it is shared memory). Raises OSError or KeyError if the process has ended."""
    with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        found = {line[0]: int(line[1]) * 1024 for line in map(bytes.split, file) if line[0].startswith(b"Pss")}
    return found[b"Pss:"], found[b"Pss_Shmem:"]


def _shared_files(pid: int) -> dict[tuple[int, int], int]:
    """Files of shared memory that a process has open, unlinked ones too: (device, inode) → bytes of memory behind it.

    Raises OSError if the process has ended.
    """
    found = {}
    for name in os.listdir(folder := f"/proc/{pid}/fd"):
        try:
            if os.readlink(path := f"{folder}/{name}").startswith(SHARED_MEMORY):
                status = os.stat(path)
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
        except OSError:
            continue  # closed meanwhile
    return found
