"""Worker processes for a runtime inside a task (dask on Headrace, for example): forks of the task's own zygote.

They have the DAG file parsed and all that it imports, run in the task's process group, and so count and end with it.

    task ──{"t": "start", module, function, numbers, environment} + descriptors, stdout, stderr──▶ zygote
         ◀──{"t": "forked", pid} + pidfd / {"t": "refused", why} / {"t": "exit", pid, code, rss_bytes}──
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from headrace import foster
from headrace.config import available_cores
from headrace_airflow.wire import Channel, Message

_ANSWER_WITHIN_S: Final = 10.0
Tell = Callable[[Message, Sequence[int]], None]


def take_from(zygote: socket.socket, cpus: float) -> Tell:
    """In a task: a runtime has its workers from the zygote, and no more than the task has cpus.

    The latter by ``HEADRACE_NUM_WORKERS`` in the environment of this process and of what it starts, unless that is set.

    Args:
        zygote: the connection to it; belongs to this module from now on.
        cpus: what the task, or else the node, may use.

    Returns:
        what brings other messages to it.
    """
    os.environ.setdefault("HEADRACE_NUM_WORKERS", str(max(1, min(int(cpus), available_cores()))))
    source = _Source(Channel(zygote))
    foster.start = source.start
    return source.tell


def without_workers(zygote: socket.socket) -> Tell:
    """In a contained process: brings messages to the zygote, which gives it no workers."""
    return _Source(Channel(zygote)).tell


def become(message: Message, fds: list[int]) -> NoReturn:
    """In a fork of the zygote: what the task has ordered."""
    *descriptors, stdout, stderr = fds
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.environ.clear()
    os.environ.update(message["environment"])
    atexit._clear()
    getattr(importlib.import_module(message["module"]), message["function"])(*descriptors, *message["numbers"])
    os._exit(0)


class _Source:
    """The zygote, as a task sees it. Thread-safe: whoever waits for an answer makes all others wait for theirs.

    What answers an order does not say which. So after one that was not answered in time there is no other: the
    connection is closed, and the runtime starts its workers by itself.
    """

    def __init__(self, zygote: Channel) -> None:
        self._zygote = zygote
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._ended: dict[int, tuple[int, int]] = {}

    def start(self, order: foster.Order) -> foster.Fostered:
        """As ``foster.start``; blocks for up to ten seconds. The process's ``pid_fd`` is the caller's to close.

        Raises:
            OSError: the zygote refuses, is gone or does not answer, or this is not the task but a child of its.
        """
        if os.getpid() != self._pid:
            raise OSError("a child of the task does not have the zygote")
        request = {
            "t": "start", "module": order.module, "function": order.function, "numbers": list(order.numbers),
            "environment": dict(order.environment),
        }  # fmt: skip
        with self._lock:
            self._zygote.send(request, [*order.descriptors, 1, 2])
            while (received := self._zygote.wait(_ANSWER_WITHIN_S)) is not None:
                message, fds = received
                if message["t"] == "forked":
                    return _Fork(self, message["pid"], fds[0])
                if message["t"] == "refused":
                    raise OSError(message["why"])
                self._note(message)
            self._zygote.close()
        raise OSError("the zygote does not answer")

    def tell(self, message: Message, descriptors: Sequence[int]) -> None:
        """Sends something that has no answer; lost if the zygote is gone, or if this is a child of the task."""
        if os.getpid() == self._pid:
            with self._lock:
                self._zygote.send(message, descriptors)
                self._zygote.drain(_ANSWER_WITHIN_S)

    def end_of(self, pid: int) -> tuple[int, int] | None:
        """Blocks until the zygote has reaped a process that has ended, or was killed: soon, so the lock is kept.

        Returns:
            its exit code and the most memory it had, in bytes; ``None``: the zygote is gone, or does not answer.
        """
        with self._lock:
            while pid not in self._ended:
                received = self._zygote.wait(_ANSWER_WITHIN_S)
                if received is None:
                    return None
                self._note(received[0])
            return self._ended.pop(pid)

    def _note(self, message: Message) -> None:
        self._ended[message["pid"]] = message["code"], message["rss_bytes"]


class _Fork:
    """``foster.Fostered``: a fork of the zygote, which reaps it; the runtime has ordered it, and closes ``pid_fd``."""

    def __init__(self, source: _Source, pid: int, pid_fd: int) -> None:
        self._source = source
        self.pid = pid
        self.pid_fd = pid_fd

    def kill(self) -> None:
        try:
            signal.pidfd_send_signal(self.pid_fd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def collect(self) -> tuple[int, int] | None:
        return self._source.end_of(self.pid)

    def forget(self) -> None:
        pass  # nothing here would ever wait for it
