"""A process that holds one parsed DAG file and forks a child for every task of it; or none: the bare zygote.

It is the only kind of process that runs user code besides the tasks, and it holds no token: the supervisor that asks
for a child keeps the token and talks to the API server; the child talks to the supervisor.

    daemon ──{"t": "parse", file}──▶ zygote ──{"t": "parsed", sources, unfit}──▶ daemon
    daemon ──{"t": "serve"} + socket──▶ zygote
    supervisor ══that socket══ {"t": "fork"} + stdin, stdout, stderr, log ▶ zygote ◀ {"t": "forked", pid} + pidfd
                                                                           zygote ◀ {"t": "exit", code, rss_bytes}

A supervisor that is gone takes its child with it, a zygote that is gone takes all of its children.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import traceback
from dataclasses import dataclass
from typing import NoReturn

from headrace_airflow import internals, processes
from headrace_airflow.sources import Sources, Watch
from headrace_airflow.wire import Channel, Message


@dataclass(slots=True)
class _Child:
    pid: int
    pid_fd: int
    supervisor: Channel


class Zygote:
    """Serves supervisors until the daemon has closed its connection and the last child has ended."""

    def __init__(self, daemon: Channel) -> None:
        self._daemon = daemon
        self._selector = selectors.DefaultSelector()
        self._selector.register(daemon, selectors.EVENT_READ)
        self._supervisors: dict[int, Channel] = {}
        """by descriptor"""
        self._children: dict[int, _Child] = {}
        """by pidfd"""

    def run(self) -> None:
        """Serves; returns when there is nothing left to serve."""
        while self._supervisors or not self._daemon.closed:
            for key, _ in self._selector.select():
                if key.fileobj is self._daemon:
                    self._listen()
                elif key.fd in self._children:
                    self._reap(key.fd)
                elif key.fd in self._supervisors:
                    self._serve(self._supervisors[key.fd])

    def _listen(self) -> None:
        for _, fds in self._daemon.receive():
            (fd,) = fds
            self._supervisors[fd] = supervisor = Channel(socket.socket(fileno=fd))
            self._selector.register(supervisor, selectors.EVENT_READ)
        if self._daemon.closed:
            self._selector.unregister(self._daemon)

    def _serve(self, supervisor: Channel) -> None:
        for message, fds in supervisor.receive():
            self._fork(supervisor, message, fds)
            for fd in fds:
                os.close(fd)
        if supervisor.closed:
            self._selector.unregister(supervisor)
            del self._supervisors[supervisor.fileno()]
            for child in self._children.values():
                if child.supervisor is supervisor:
                    processes.kill_group(child.pid)
            supervisor.close()

    def _fork(self, supervisor: Channel, message: Message, fds: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_task(message, fds)
        pid_fd = os.pidfd_open(pid)
        try:
            os.setpgid(pid, pid)  # here too: the group has to exist when the supervisor hears of the child
        except OSError:
            pass
        self._children[pid_fd] = _Child(pid, pid_fd, supervisor)
        self._selector.register(pid_fd, selectors.EVENT_READ)
        supervisor.send({"t": "forked", "pid": pid}, [pid_fd])

    def _become_task(self, message: Message, fds: list[int]) -> NoReturn:
        """In the child: forgets the zygote's descriptors, and runs a task; never returns."""
        try:
            processes.die_with_parent(os.getppid())
            os.setpgid(0, 0)
            processes.be_first_to_go()
            for channel in (self._daemon, *self._supervisors.values()):
                channel.close()
            for pid_fd in self._children:
                os.close(pid_fd)
            self._selector.close()
            internals.reseed()
            internals.run_task(message, fds)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(124)

    def _reap(self, pid_fd: int) -> None:
        child = self._children.pop(pid_fd)
        self._selector.unregister(pid_fd)
        os.close(pid_fd)
        ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        if ended is not None and ended.si_code != os.CLD_EXITED:
            processes.kill_group(child.pid)  # it was killed: what it had started in its group has nobody any more
        _, status, usage = os.wait4(child.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        child.supervisor.send({"t": "exit", "code": code, "rss_bytes": usage.ru_maxrss * 1024})


def main(daemon: Channel) -> None:
    """A zygote's whole life: hears which file it is for, parses it, serves."""
    received = daemon.wait()
    if received is None:
        return
    internals.forbid_database()
    message, _ = received
    processes.set_title(f"headrace zygote: {message['file'][2] if message['file'] else 'bare'}")
    if message["file"] is not None:
        sources, unfit = _parse(*message["file"])
        daemon.send({"t": "parsed", "sources": sources, "unfit": unfit})
        if unfit:
            return
    signal.set_wakeup_fd(-1)
    gc.collect()
    gc.freeze()
    Zygote(daemon).run()


def _parse(bundle: str, version: str, path: str) -> tuple[Sources, str]:
    """Parses and holds a DAG file; returns what it was made from, and why it cannot be held (empty: it can)."""
    watch = Watch()
    try:
        unfit = internals.hold_parsed(bundle, version or None, path)
    except BaseException as error:
        unfit = f"{type(error).__name__}: {error}"
    sources = watch.stop()
    return sources, unfit or watch.unrepeatable or _leaked_threads()


def _leaked_threads() -> str:
    """Why a fork would not be safe; empty: it is.

    Libraries that keep threads and know of forks (OpenBLAS) stop them when a fork begins: so one is made, and what is
    left after it counts.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    left = processes.threads_of_this_process() - 1
    return (
        f"importing it leaves {left} thread(s) running, and a process with threads must not be forked" if left else ""
    )
