"""Starts worker processes: by a fresh exec, never by a fork of this process, which may have any threads and locks.

Somebody else may fork them, from a process that has no threads (:mod:`headrace.foster`). A worker never imports
``__main__``, so unguarded scripts, notebooks, the REPL and programs from stdin all work.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import headrace
from headrace import companions, foster
from headrace.lanes.processes.wire import Channel
from headrace.store import hashes

_WORKER: Final = "headrace.lanes.processes.worker"
_BOOTSTRAP: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [sys.argv[1]]; "
    "from {module} import main; main(*map(int, sys.argv[2:]))"
)
_ONE_THREAD: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_HASH_SEED: Final = "0"


class Executed:
    """A worker that this process has started by itself; ``Fostered`` says what one has to do."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self.pid_fd = os.pidfd_open(process.pid)

    def kill(self) -> None:
        kill(self.pid)

    def collect(self) -> tuple[int, int] | None:
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode, usage.ru_maxrss * 1024

    def forget(self) -> None:
        self._process.returncode = 0


@dataclass(slots=True)
class Launched:
    """A new worker process and the owner's ends of what connects it; all of them are the receiver's to close."""

    process: foster.Fostered
    channel: Channel
    page: mmap.mmap
    """What the worker is at, see worker.py; readable after its death too."""
    life_fds: tuple[int, int]
    """Both ends of the life pipe, writer first. The worker and its children are killed when that is closed, however
    this process ends, provided that the other end is open somewhere: the worker, whose it is too, may be dead already.
    Of a process that ends Linux releases the highest descriptor first, and ``pipe`` gives the writer the higher one."""


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
        process = _start(place, (their_socket, page_fd, life_read))
        for fd in (their_socket, page_fd):
            opened.remove(fd)
            os.close(fd)
        opened.clear()
        return Launched(process, Channel(socket.socket(fileno=our_socket)), page, (life_write, life_read))
    finally:
        for fd in opened:
            os.close(fd)


def _start(place: int, descriptors: tuple[int, int, int]) -> foster.Fostered:
    environment = worker_environment(os.environ.copy())
    if foster.start is not None:
        try:
            return foster.start(foster.Order(_WORKER, "main", descriptors, (place,), environment))
        except OSError:  # nobody is there any more
            pass
    return Executed(execute(_WORKER, descriptors, (place,), environment))


def execute(
    module: str, descriptors: Sequence[int], numbers: Sequence[int], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Has a fresh interpreter, which leads a session of its own, call ``module.main(*descriptors, *numbers)``.

    Args:
        module: one of this package.
        descriptors: what it inherits, by the same numbers.
        numbers: further arguments.
        environment: all of its environment.

    Raises:
        OSError: no process is left, or the interpreter cannot be executed.
    """
    if not sys.executable:
        raise OSError("this Python does not know its interpreter's path (sys.executable), so it cannot start workers")
    root = str(Path(headrace.__file__).parent.parent)
    arguments = map(str, (*descriptors, *numbers))
    return subprocess.Popen(
        [sys.executable, *_interpreter_flags(), "-c", _BOOTSTRAP.format(module=module), root, *arguments],
        stdin=subprocess.DEVNULL,
        pass_fds=descriptors,
        start_new_session=True,
        env=environment,
    )


def kill(pid: int) -> None:
    """Kills a process that :func:`execute` has started, and what is in its group."""
    for send in (os.killpg, os.kill):  # it may not lead its group yet
        try:
            send(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def worker_environment(environment: dict[str, str]) -> dict[str, str]:
    """The environment of a worker: the caller's, one thread for every BLAS, and equal string hashes in all workers."""
    for name in _ONE_THREAD:
        environment.setdefault(name, "1")
    environment["PYTHONHASHSEED"] = hashes.SEED or _HASH_SEED
    companions.add_to(environment)
    return environment


def _interpreter_flags() -> list[str]:
    """Those that another interpreter needs to be like this one."""
    # The standard library's own, as multiprocessing uses it: -W, -X, -O, -E and so on as this process was given them.
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # typeshed leaves it out
    return flags
