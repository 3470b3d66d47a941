"""A process that holds one parsed DAG file and forks a child for every task of it; or none: the bare zygote.

It is the only kind of process that runs user code besides the tasks, and it holds no token: the supervisor that asks
for a child keeps the token and talks to the API server; the child talks to the supervisor.

    daemon ──{"t": "parse", file, folder, share_pages, preload}──▶ zygote
           ◀──{"t": "parsing", sources}──   what may end it
           ◀──{"t": "parsed", sources, unfit}──   again if something it imports later makes it unfit
           ──{"t": "serve", id, instance, cpus, ahead} + a supervisor's socket──▶
           ──{"t": "ahead", id} / {"t": "discard", id}──▶
           ◀──{"t": "offer", id, instance, feeders, cpus, memory_bytes} / {"t": "ahead", id, state}──

    supervisor ══that socket══{"t": "fork", perhaps callback} + requests, stdout, stderr, log──▶ zygote
                           ◀──{"t": "forked", pid} + pidfd / {"t": "exit", pid, code, rss_bytes}──

    task, or what runs ahead of one ──{"t": "import", module}──▶ zygote
                                    ──{"t": "bundle", bundle, folder}──▶, and on to the daemon
                                    ──{"t": "stream", id} + spool, control──▶
                                    ──{"t": "start", …} + descriptors, stdout, stderr──▶
                                    ◀──{"t": "forked", …} + pidfd / {"t": "refused", why} / {"t": "exit", …}──

preload.py has what becomes of an import, followers.py of a stream and its readers (offer, ahead, discard), workers.py
the worker processes that a task starts. A supervisor that is gone takes its child with it, a task its workers, and a
zygote that is gone takes all of its children.
"""

from __future__ import annotations

import gc
import os
import selectors
import signal
import socket
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from headrace_airflow import containment, internals, processes, task_logging, wire, workers
from headrace_airflow.admission import FileKey
from headrace_airflow.followers import Follower, Followers
from headrace_airflow.preload import Imports
from headrace_airflow.sources import Sources, Watch, looked_at, package_folders, signature
from headrace_airflow.speculation import Instance
from headrace_airflow.wire import Channel, Message


@dataclass(slots=True, eq=False)
class _Child:
    """A task, a worker that a task has asked for, or what runs ahead of a task."""

    pid: int
    owner: Channel | None
    """Whoever has asked for it, a supervisor or a task; ``None``: it runs ahead."""
    asks: Channel | None = None
    """Where it asks for workers, and tells of its stream."""
    feeder: str = ""
    """What the daemon calls it: the submission of a task, or the id of what runs ahead."""
    instance: Instance | None = None
    """The task of a run that it is, or is ahead of."""
    ahead: str | None = None
    """What ran ahead of this task; empty: nothing; ``None``: this is no task."""
    contained: bool = False
    """Whether it must have nobody do what it may not do itself."""


class Zygote:
    """Serves supervisors until the daemon has closed its connection and the last child has ended.

    Args:
        daemon: the connection to it.
        sources: of the DAG file that it holds; empty: it holds none.
        preload: whether it imports what its tasks do.
        on_child_end: how its tasks shall handle SIGCHLD; ``None``: nobody knows.
    """

    def __init__(self, daemon: Channel, sources: Sources, preload: bool, on_child_end: Any) -> None:
        self._pid = os.getpid()
        self._descriptors = processes.take_all_descriptors()
        self._on_child_end = on_child_end
        self._daemon = daemon
        self._sources = sources
        self._imports = Imports(looked_at(sources), preload)
        self._selector = selectors.DefaultSelector()
        self._selector.register(daemon, selectors.EVENT_READ)
        self._supervisors: dict[int, Channel] = {}
        """by descriptor"""
        self._serving: dict[Channel, Message] = {}
        """What the daemon has said of a supervisor's task."""
        self._tasks: dict[int, _Child] = {}
        """by the descriptor of ``asks``"""
        self._children: dict[int, _Child] = {}
        """by pidfd"""
        self._followers = Followers(daemon, internals.held_dag)

    def run(self) -> None:
        """Serves; returns when there is nothing left to serve."""
        self._listen()  # what came together with the order to parse is in the channel, no longer in the socket
        while self._supervisors or not self._daemon.closed:
            ready = self._selector.select(0.0 if self._imports.pending else None)
            if not ready:
                self._import()
            for key, _ in ready:
                if key.fileobj is self._daemon:
                    self._listen()
                elif key.fd in self._children:
                    self._reap(key.fd)
                elif key.fd in self._supervisors:
                    self._serve(self._supervisors[key.fd])
                elif key.fd in self._tasks:
                    self._serve_task(self._tasks[key.fd])

    def _import(self) -> None:
        """Nobody wants anything: imports what a task has begun to import."""
        self._imports.do_next()
        _settle_objects()
        if unfit := _leaked_threads():
            self._daemon.send({"t": "parsed", "sources": self._sources, "unfit": unfit})

    def _listen(self) -> None:
        for message, fds in self._daemon.receive():
            match message["t"]:
                case "serve":
                    (fd,) = fds
                    self._supervisors[fd] = supervisor = Channel(socket.socket(fileno=fd))
                    self._serving[supervisor] = message
                    self._selector.register(supervisor, selectors.EVENT_READ)
                case "ahead":
                    self._fork_ahead(message["id"])
                case "discard":
                    self._discard(message["id"])
        if self._daemon.closed:
            self._selector.unregister(self._daemon)
            for pid in self._followers.pids():
                processes.kill_group(pid)

    def _serve(self, supervisor: Channel) -> None:
        for message, fds in supervisor.receive():
            self._fork(supervisor, message, fds)
            for fd in fds:
                os.close(fd)
        if supervisor.closed:
            self._selector.unregister(supervisor)
            del self._supervisors[supervisor.fileno()], self._serving[supervisor]
            for child in self._children.values():
                if child.owner is supervisor:
                    processes.kill_group(child.pid)
            supervisor.close()

    def _fork(self, supervisor: Channel, message: Message, fds: list[int]) -> None:
        serving = self._serving[supervisor]
        ends: Sequence[Channel | socket.socket] = ()
        try:
            asks, theirs = ends = wire.pair()
            pid = os.fork()
        except OSError as error:  # no more processes, or descriptors, are allowed: those that run go on
            for end in ends:
                end.close()
            self._discard(serving["ahead"])
            supervisor.send({"t": "refused", "why": str(error)})
            return
        ahead = self._followers.take(serving["ahead"])
        if pid == 0:
            asks.close()
            self._become_task(message, fds, theirs, serving["cpus"], ahead)
        theirs.close()
        instance = serving["instance"] and Instance(*serving["instance"])
        task = _Child(pid, supervisor, asks, serving["id"], instance, serving["ahead"])
        self._adopt(task)
        if ahead is not None:
            self._hand_over(ahead, task)
        self._look_after(task)

    def _hand_over(self, ahead: Follower, task: _Child) -> None:
        """What runs ahead of a task ends with it from now on, and counts as a part of it."""
        assert ahead.task is not None
        ahead.task.close()
        for child in self._children.values():
            if child.pid == ahead.pid:
                child.owner, child.feeder = task.asks, task.feeder
                _join_group(child.pid, task.pid)

    def _fork_ahead(self, id: str) -> None:
        if (prepared := self._followers.prepare(id)) is None:
            return
        follower, to_task = prepared
        asks, theirs = wire.pair()
        with to_task, theirs:
            try:
                pid = os.fork()
            except OSError:  # no more processes are allowed: its task will need none ahead
                asks.close()
                self._followers.forked(follower, 0)
                self._followers.ended(id, 1)
                return
            if pid == 0:
                asks.close()
                self._become_ahead(follower, to_task, theirs)
        self._followers.forked(follower, pid)
        child = _Child(pid, None, asks, id, follower.instance, contained=follower.candidate.contained)
        self._adopt(child)
        self._look_after(child)

    def _discard(self, id: str) -> None:
        if pid := self._followers.drop(id):
            processes.kill_group(pid)

    def _adopt(self, task: _Child) -> None:
        """Lets a task, or what runs ahead of one, ask."""
        assert task.asks is not None
        _join_group(task.pid, task.pid)  # here too: the group has to exist when others hear of it
        self._tasks[task.asks.fileno()] = task
        self._selector.register(task.asks, selectors.EVENT_READ)

    def _look_after(self, child: _Child) -> None:
        pid_fd = os.pidfd_open(child.pid)
        self._children[pid_fd] = child
        self._selector.register(pid_fd, selectors.EVENT_READ)
        if child.owner is not None:
            child.owner.send({"t": "forked", "pid": child.pid}, [pid_fd])

    def _serve_task(self, task: _Child) -> None:
        assert task.asks is not None
        for message, fds in task.asks.receive():
            if message["t"] == "stream":
                if task.instance is not None:
                    self._followers.stream_began(task.feeder, task.instance, message["id"], fds)
            elif message["t"] == "import":
                self._imports.wish(message["module"])
            elif message["t"] == "bundle":
                self._daemon.send(message)
            elif task.contained:
                task.asks.send({"t": "refused", "why": "it is contained"})
            else:
                self._fork_worker(task, message, fds)
            for fd in fds:
                os.close(fd)
        if task.asks.closed:
            self._forget_task(task)

    def _fork_worker(self, task: _Child, message: Message, fds: list[int]) -> None:
        assert task.asks is not None
        try:
            pid = os.fork()
        except OSError as error:  # no more processes are allowed
            task.asks.send({"t": "refused", "why": str(error)})
        else:
            if pid == 0:
                self._become_worker(task.pid, message, fds)
            self._look_after(_Child(pid, task.asks))

    def _forget_task(self, task: _Child) -> None:
        """It has ended, or has no more to ask."""
        assert task.asks is not None
        if self._tasks.pop(task.asks.fileno(), None) is not None:
            self._selector.unregister(task.asks)
            task.asks.close()

    def _become_task(
        self, message: Message, fds: list[int], zygote: socket.socket, cpus: float, ahead: Follower | None
    ) -> NoReturn:
        """In the child: runs a task; never returns."""
        try:
            self._leave(0)
            tell = workers.take_from(zygote, cpus)
            internals.run_task(message, fds, None if ahead is None else ahead.task, tell)
        except BaseException:  # a child must never go on as the zygote
            traceback.print_exc()
        finally:
            os._exit(124)

    def _become_ahead(self, follower: Follower, to_task: socket.socket, zygote: socket.socket) -> NoReturn:
        """In the child: runs the function of a task that has not started; never returns."""
        try:
            self._leave(0, [feed.spool for feed in follower.feeds.values()])
            operator, _, contained = follower.candidate
            first = containment.reserve() if contained else None
            tell = workers.without_workers(zygote.dup()) if contained else workers.take_from(zygote, 1.0)
            internals.run_ahead(operator, follower.feeds, Channel(to_task.dup()), tell, first)
        except BaseException:  # a child must never go on as the zygote
            traceback.print_exc()
        finally:
            os._exit(124)

    def _become_worker(self, task: int, message: Message, fds: list[int]) -> NoReturn:
        """In the child: does what a task has ordered; never returns."""
        try:
            self._leave(task)
            task_logging.undo()
            workers.become(message, fds)
        except BaseException:  # a child must never go on as the zygote
            traceback.print_exc()
        finally:
            os._exit(124)

    def _leave(self, group: int, kept: Collection[int] = ()) -> None:
        """In a child: into its process group (0: its own), without the zygote's descriptors."""
        processes.die_with_parent(self._pid)
        os.setpgid(0, group)
        processes.be_first_to_go()
        tasks = [task.asks for task in self._tasks.values() if task.asks is not None]
        for channel in (self._daemon, *self._supervisors.values(), *tasks):
            channel.close()
        for pid_fd in self._children:
            os.close(pid_fd)
        self._selector.close()
        processes.limit_descriptors(self._descriptors)
        if self._on_child_end is not None:
            signal.signal(signal.SIGCHLD, self._on_child_end)
        self._followers.leave(kept)
        internals.reseed()

    def _reap(self, pid_fd: int) -> None:
        child = self._children.pop(pid_fd)
        self._selector.unregister(pid_fd)
        os.close(pid_fd)
        ended = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        if ended is not None and ended.si_code != os.CLD_EXITED:
            processes.kill_group(child.pid)  # it was killed: what it had started in its group has nobody any more
        _, status, usage = os.wait4(child.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if child.owner is not None:
            child.owner.send({"t": "exit", "pid": child.pid, "code": code, "rss_bytes": usage.ru_maxrss * 1024})
        else:
            self._followers.ended(child.feeder, code)
        if child.contained and child.instance is not None:
            self._followers.contained_ended(child.instance, code)
        if child.ahead is not None:
            self._followers.forget_streams({child.feeder, child.ahead})
        if child.asks is not None:
            for worker in [other for other in self._children.values() if other.owner is child.asks]:
                processes.kill_group(worker.pid)
            self._forget_task(child)


def _join_group(pid: int, group: int) -> None:
    try:
        os.setpgid(pid, group)
    except OSError:  # it has ended, or has done so itself
        pass


def main(daemon: Channel) -> None:
    """A zygote's whole life: hears which file it is for, parses it, serves."""
    received = daemon.wait()
    if received is None:
        return
    internals.forbid_database()
    message, _ = received
    if message["share_pages"]:
        processes.share_equal_pages()
    processes.set_title(f"headrace zygote: {message['file'][2] if message['file'] else 'bare'}")
    task_logging.prepare()
    sources, unfit = _parse(daemon, message["file"], message["folder"]) if message["file"] else ([], "")
    # What the file has set up is for its tasks: it would reap them before this process does.
    on_child_end = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if message["file"]:
        unfit = unfit or _leaked_threads()
        daemon.send({"t": "parsed", "sources": sources, "unfit": unfit})
        if unfit:
            return
    signal.set_wakeup_fd(-1)
    _settle_objects()
    Zygote(daemon, sources, message["preload"] and bool(message["file"]), on_child_end).run()


def _settle_objects() -> None:
    """What there is now stays: forks do not look at it again, which would copy its pages."""
    gc.collect()
    gc.freeze()


def _parse(daemon: Channel, file: FileKey, folder: str) -> tuple[Sources, str]:
    """Parses and holds a DAG file; returns what it was made from, and why it cannot be held (empty: it can)."""

    def begins(found: str) -> None:
        """If the file ends this process, the daemon knows what has to change before another one tries."""
        known = [os.path.abspath(found), *package_folders()]
        daemon.send({"t": "parsing", "sources": [(path, signature(path)) for path in known]})

    bundle, version, path = file
    watch = Watch()
    try:
        unfit = internals.hold_parsed(bundle, version or None, path, folder, begins)
    except BaseException as error:  # of users' code, SystemExit included
        unfit = f"{type(error).__name__}: {error}"
    sources = watch.stop()
    return sources, unfit or watch.unrepeatable


def _leaked_threads() -> str:
    """Why a fork would not be safe; empty: it is.

    Libraries that keep threads and know of forks (OpenBLAS) stop them when a fork begins: so one is made, and what is
    left after it counts.
    """
    try:
        pid = os.fork()
    except OSError as error:  # no more processes are allowed
        return f"it could not be found out whether importing it leaves threads running: {error}"
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    left = processes.threads_of_this_process() - 1
    return (
        f"importing it leaves {left} thread(s) running, and a process with threads must not be forked" if left else ""
    )
