"""Starts worker processes: always a fresh exec, never a fork of this process, which may have any threads and locks.

A worker never imports ``__main__``, so unguarded scripts, notebooks, the REPL and programs from stdin all work.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import headrace
from headrace import companions
from headrace.lanes.processes.wire import Channel

_BOOTSTRAP: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [sys.argv[1]]; "
    "from headrace.lanes.processes.worker import main; main(*map(int, sys.argv[2:6]))"
)
_ONE_THREAD: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_HASH_SEED: Final = "0"


@dataclass(slots=True)
class Launched:
    """A new worker process and the owner's ends of what connects it; all of them are the receiver's to close."""

    process: subprocess.Popen[bytes]
    channel: Channel
    page: mmap.mmap
    """What the worker is at, see worker.py; readable after its death too."""
    life_fd: int
    """Kills the worker and its children when it is closed, however this process ends."""
    pid_fd: int


def launch(place: int) -> Launched:
    """Starts a worker; returns before it runs.

    The calling thread must live as long as the worker: the kernel kills the worker when that thread ends.

    Args:
        place: the worker's number.

    Raises:
        OSError: no process or no descriptor is left, or the interpreter cannot be executed.
    """
    opened: list[int] = []
    try:
        ours, theirs = socket.socketpair()
        opened += [ours.detach(), theirs.detach()]
        opened += os.pipe2(os.O_CLOEXEC)
        opened.append(os.memfd_create("headrace-page", os.MFD_CLOEXEC))
        our_socket, their_socket, life_read, life_write, page_fd = opened
        os.ftruncate(page_fd, mmap.PAGESIZE)
        page = mmap.mmap(page_fd, mmap.PAGESIZE)
        process = _execute(place, their_socket, page_fd, life_read)
        pid_fd = os.pidfd_open(process.pid)
        for fd in (their_socket, life_read, page_fd):
            opened.remove(fd)
            os.close(fd)
        opened.clear()
        return Launched(process, Channel(socket.socket(fileno=our_socket)), page, life_write, pid_fd)
    finally:
        for fd in opened:
            os.close(fd)


def _execute(place: int, socket_fd: int, page_fd: int, life_fd: int) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise OSError("this Python does not know its interpreter's path (sys.executable), so it cannot start workers")
    root = str(Path(headrace.__file__).parent.parent)
    numbers = [str(n) for n in (socket_fd, page_fd, life_fd, place)]
    return subprocess.Popen(
        [sys.executable, *_interpreter_flags(), "-c", _BOOTSTRAP, root, *numbers],
        stdin=subprocess.DEVNULL,
        pass_fds=(socket_fd, page_fd, life_fd),
        start_new_session=True,
        env=worker_environment(os.environ.copy()),
    )


def worker_environment(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a worker: the caller's, one thread for every BLAS, and equal string hashes in all workers."""
    for name in _ONE_THREAD:
        environment.setdefault(name, "1")
    if environment.get("PYTHONHASHSEED", "random") in ("random", ""):
        environment["PYTHONHASHSEED"] = _HASH_SEED
    companions.add_to(environment)
    return environment


def _interpreter_flags() -> list[str]:
    # The standard library's own, as multiprocessing uses it: -W, -X, -O, -E and so on as this process was given them.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags
