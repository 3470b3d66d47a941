"""The process from which all others of a node are forked: single-threaded, with Airflow imported, free of user code.

It holds no token: workloads go from the daemon to the supervisors over connections that only pass through here.

    daemon ──{"t": "fork", "kind", "id"} + socket──▶ origin ──fork──▶ one of them, which owns the socket
       ◀──{"t": "forked", "id", "pid"} / {"t": "refused", "id"} / {"t": "exit", "pid", "code"}──
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from headrace_airflow import processes
from headrace_airflow.wire import Channel, Message


class Origin:
    """Forks on demand, and reports what became of what it forked. Ends when the daemon's connection does."""

    def __init__(self, daemon: Channel) -> None:
        self._daemon = daemon
        self._selector = selectors.DefaultSelector()
        self._selector.register(daemon, selectors.EVENT_READ)
        self._pid_fds: dict[int, int] = {}
        """pidfd → pid"""

    def run(self) -> None:
        """Serves until the daemon is gone."""
        while not self._daemon.closed:
            for key, _ in self._selector.select():
                if key.fileobj is self._daemon:
                    for message, fds in self._daemon.receive():
                        self._fork(message, fds)
                else:
                    self._reap(key.fd)
            self._daemon.drain(10.0)

    def _fork(self, message: Message, fds: list[int]) -> None:
        (fd,) = fds
        origin = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # no more processes are allowed: those that run go on
            sys.stderr.write(f"headrace: no {message['kind']} could be started: {error}\n")
            os.close(fd)
            self._daemon.send({"t": "refused", "id": message["id"]})
            return
        if pid == 0:
            self._become(message["kind"], socket.socket(fileno=fd), origin)
        os.close(fd)
        pid_fd = os.pidfd_open(pid)
        self._pid_fds[pid_fd] = pid
        self._selector.register(pid_fd, selectors.EVENT_READ)
        self._daemon.send({"t": "forked", "id": message["id"], "pid": pid})

    def _become(self, kind: str, sock: socket.socket, origin: int) -> NoReturn:
        """In the child: forgets the origin's descriptors and lives another life; never returns."""
        code = 1
        try:
            processes.die_with_parent(origin)
            for fd in self._pid_fds:
                os.close(fd)
            self._selector.close()
            self._daemon.close()
            _main_of(kind)(Channel(sock))
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:  # whatever ends a fork of ours, it must not go on as the origin
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)

    def _reap(self, pid_fd: int) -> None:
        pid = self._pid_fds.pop(pid_fd)
        self._selector.unregister(pid_fd)
        os.close(pid_fd)
        _, status = os.waitpid(pid, 0)
        self._daemon.send({"t": "exit", "pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _main_of(kind: str) -> Callable[[Channel], None]:
    if kind == "supervisor":
        from headrace_airflow.supervisor import main
    elif kind == "pulse":
        from headrace_airflow.pulse import main
    else:
        from headrace_airflow.zygote import main
    return main


def main(fd: int, parent: int) -> None:
    """The origin's whole life.

    Args:
        fd: its connection to the daemon.
        parent: the daemon's pid.
    """
    processes.die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at a terminal is for the scheduler
    from headrace_airflow import internals

    internals.prepare_origin()
    if (threads := processes.threads_of_this_process()) != 1:
        sys.stderr.write(f"headrace: importing Airflow started {threads - 1} thread(s); forking all the same\n")
    processes.set_title("headrace origin")
    gc.collect()
    gc.freeze()
    daemon = Channel(socket.socket(fileno=fd))
    daemon.send({"t": "ready"})
    Origin(daemon).run()
