"""The node daemon: a small single-threaded process that outlives the scheduler. No user code, no Airflow, no database.

    HeadraceExecutor ══ socket ══▶ daemon ══▶ origin ──fork──▶ supervisors, zygotes
    airflow headrace …  ══ socket ══▶   │ ◀═══ one connection to each of them
                                        └── Admission decides, this module carries out

It starts when an executor needs it, and ends when it has had neither a scheduler nor a task for ``linger_s``. What it
has started ends with it, however it ends (processes.py).

From clients: hello, submit, revoke, adopt, look, drain, evict, status. To schedulers: started, reported, ended; what a
scheduler that is gone has not heard is kept for the one that adopts.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from headrace_airflow import admission, load, places, processes, sources, wire
from headrace_airflow.admission import Admission, Limits
from headrace_airflow.settings import Settings
from headrace_airflow.wire import Channel, Message

PROTOCOL: Final = 1
_TICK_S: Final = 1.0
_LAZY_TICK_S: Final = 15.0
_KEPT_ENDS: Final = 10_000
_GRACE_S: Final = 6.0
"""A supervisor that was asked to end its task (which may take 5 s to escalate) is killed after this time."""

_BOOTSTRAP: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from headrace_airflow.origin import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


@dataclass(slots=True)
class _Task:
    """A workload that has come in and not ended."""

    message: Message
    owner: Channel | None
    supervisor: Channel | None = None
    supervisor_pid: int = 0
    child_pid: int = 0
    zygote: int = admission.BARE
    zygote_end: socket.socket | None = None
    state: str = "waiting"
    ended: Message | None = None
    since: float = field(default_factory=time.time)
    kill_at: float = 0.0


@dataclass(slots=True)
class _Zygote:
    channel: Channel
    file: admission.FileKey | None
    pid: int = 0
    sources: sources.Sources = field(default_factory=list)
    unfit: str = ""


class Daemon:
    """Owns every connection and carries out what ``Admission`` decides."""

    def __init__(self, place: Path, settings: Settings) -> None:
        self._place = place
        self._settings = settings
        self._machine = Admission(
            Limits(
                settings.cpus,
                settings.memory_bytes,
                settings.tasks,
                settings.patience_s,
                settings.zygote_idle_s,
                settings.zygotes,
            )
        )
        self._selector = selectors.DefaultSelector()
        self._clients: dict[Channel, str] = {}
        """The role of each client: scheduler, or anything else."""
        self._tasks: dict[str, _Task] = {}
        self._ends: dict[str, Message] = {}
        """What no scheduler has heard yet."""
        self._zygotes: dict[int, _Zygote] = {}
        self._by_pid: dict[int, tuple[str, Any]] = {}
        self._origin: Channel | None = None
        self._origin_process: subprocess.Popen[bytes] | None = None
        self._origin_ready = False
        self._waiting_forks: dict[str, Callable[[int], None]] = {}
        self._forks = 0
        self._load = load.Load()
        self._needed_at = time.monotonic()
        self._started = time.time()
        self._stopping = False
        self._listener = self._listen()

    # --- life ---

    def run(self) -> None:
        """Serves until nobody needs it."""
        self._start_origin()
        next_tick = 0.0
        while not self._stopping:
            for key, mask in self._selector.select(max(0.0, next_tick - time.monotonic())):
                key.data(mask)
            self._flush()
            if time.monotonic() >= next_tick:
                self._tick()
                next_tick = time.monotonic() + (_TICK_S if self._tasks else min(_LAZY_TICK_S, self._settings.linger_s))

    def close(self) -> None:
        """Ends everything that it has started, and waits for it."""
        try:
            places.socket_path(self._place).unlink()
        except FileNotFoundError:
            pass
        self._listener.close()
        for task in self._tasks.values():
            if task.child_pid:
                processes.kill_group(task.child_pid)
        if self._origin_process is not None:
            self._origin_process.kill()
            self._origin_process.wait()
        processes.end_children()

    def stop(self, *_: object) -> None:
        """Ends the loop; may be called by a signal handler."""
        self._stopping = True

    def _listen(self) -> socket.socket:
        path = places.socket_path(self._place)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(os.fspath(path))
        listener.listen(64)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, lambda _: self._accept())
        return listener

    def _tick(self) -> None:
        now = time.monotonic()
        if self._tasks:
            self._measure()
        self._handle(admission.Ticked())
        for task in self._tasks.values():
            if task.kill_at and now >= task.kill_at:
                _signal(task.supervisor_pid, signal.SIGKILL)
        if self._tasks or "scheduler" in self._clients.values():
            self._needed_at = now
        elif now - self._needed_at >= self._settings.linger_s:
            self.stop()

    def _measure(self) -> None:
        groups = {task.child_pid: key for key, task in self._tasks.items() if task.child_pid}
        for pid, cpus in self._load.measure(set(groups)).items():
            self._handle(admission.TaskMeasured(groups[pid], cpus))
        self._handle(admission.MemoryMeasured(load.memory_is_plenty()))

    def _flush(self) -> None:
        """Keeps write interest where something is unsent, and drops clients that do not read."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, Channel):
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if key.fileobj.unsent else 0)
                if key.events != wanted:
                    self._selector.modify(key.fileobj, wanted, key.data)

    def _register(
        self, channel: Channel, handle: Callable[[Message, list[int]], None], gone: Callable[[], None]
    ) -> None:
        def on_event(mask: int) -> None:
            if mask & selectors.EVENT_WRITE:
                channel.flush()
            for message, fds in channel.receive():
                handle(message, fds)
                for fd in fds:
                    os.close(fd)
            if channel.closed and channel.fileno() >= 0:
                self._forget(channel)
                gone()

        self._selector.register(channel, selectors.EVENT_READ, on_event)

    # --- clients ---

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        if wire.peer_uid(sock) != os.getuid():
            sock.close()
            return
        client = Channel(sock)
        self._clients[client] = "unknown"
        self._register(client, lambda message, _: self._hear(client, message), lambda: self._lose_client(client))

    def _lose_client(self, client: Channel) -> None:
        del self._clients[client]
        for task in self._tasks.values():
            if task.owner is client:
                task.owner = None

    def _hear(self, client: Channel, message: Message) -> None:
        match message.get("t"):
            case "hello":
                self._clients[client] = message["role"]
                client.send({"t": "welcome", "protocol": PROTOCOL, "pid": os.getpid()})
            case "submit":
                self._submit(client, message)
            case "revoke":
                self._handle(admission.TaskRevoked(message["id"]))
            case "adopt":
                client.send({"t": "adopted", "ids": self._adopt(client, message["ids"])})
            case "look":
                for key in message["ids"]:
                    if (task := self._tasks.get(key)) and task.supervisor is not None:
                        task.supervisor.send({"t": "look"})
            case "drain":
                self._handle(admission.Drained(bool(message["on"])))
                client.send({"t": "done"})
            case "evict":
                client.send({"t": "done", "count": self._evict()})
            case "status":
                client.send({"t": "status", **self._status()})
            case "stop":
                client.send({"t": "done"})
                self.stop()

    def _submit(self, client: Channel, message: Message) -> None:
        key = message["id"]
        if key in self._tasks:
            self._tasks[key].owner = client
            return
        self._tasks[key] = _Task(message, client)
        file = message.get("file")
        self._handle(
            admission.TaskSubmitted(
                key,
                tuple(file) if file else None,
                message.get("priority", 0),
                message.get("cpus"),
                message.get("memory_bytes", 0),
            )
        )

    def _adopt(self, client: Channel, ids: list[str]) -> list[str]:
        """Makes a scheduler the owner of what it asks for; returns what is known of it."""
        known = []
        for key in ids:
            if task := self._tasks.get(key):
                task.owner = client
                known.append(key)
            elif end := self._ends.pop(key, None):
                client.send(end)
                known.append(key)
        return known

    def _evict(self) -> int:
        """Has every parsed DAG file be parsed again."""
        held = [number for number in self._zygotes if number != admission.BARE]
        for number in held:
            self._handle(admission.SourcesChanged(number, ""))
        return len(held)

    def _status(self) -> Message:
        return {
            "pid": os.getpid(),
            "since": self._started,
            "drained": self._machine.drained,
            "limits": {
                "cpus": self._settings.cpus,
                "memory_bytes": self._settings.memory_bytes,
                "tasks": self._settings.tasks,
            },
            "schedulers": sum(role == "scheduler" for role in self._clients.values()),
            "tasks": [self._describe(key, task) for key, task in self._tasks.items()],
            "zygotes": [
                {"pid": z.pid, "file": z.file, "unfit": z.unfit, "sources": len(z.sources)}
                for z in self._zygotes.values()
            ],
        }

    def _describe(self, key: str, task: _Task) -> Message:
        told = self._machine.tasks.get(key)
        return {
            "id": key,
            "name": task.message.get("name", ""),
            "state": task.state,
            "pid": task.child_pid,
            "supervisor_pid": task.supervisor_pid,
            "since": task.since,
            "cpus": told.cpus if told else 0.0,
            "log_path": task.message["workload"].get("log_path"),
        }

    # --- decisions and their execution ---

    def _handle(self, event: admission.Event) -> None:
        pending = [event]
        while pending:
            for command in self._machine.handle(pending.pop(0), time.monotonic()):
                if answer := self._perform(command):
                    pending.append(answer)

    def _perform(self, command: admission.Command) -> admission.Event | None:
        match command:
            case admission.StartTask(key, number):
                return self._start_task(key, number)
            case admission.DropTask(key):
                self._end(key, {"t": "ended", "id": key, "dropped": True, "ok": False})
            case admission.KillTask(key):
                task = self._tasks[key]
                task.kill_at = time.monotonic() + _GRACE_S
                _signal(task.supervisor_pid, signal.SIGTERM)
            case admission.StartZygote(number, file):
                self._start_zygote(number, file)
            case admission.StopZygote(number):
                if zygote := self._zygotes.pop(number, None):
                    self._forget(zygote.channel)
        return None

    def _start_task(self, key: str, number: int) -> admission.Event | None:
        task = self._tasks[key]
        if stale := self._stale(task, number):
            return admission.SourcesChanged(stale, key)
        zygote = self._zygotes[number]
        task.supervisor, theirs = wire.pair()
        task.zygote, task.state = number, "starting"
        for_zygote, for_supervisor = socket.socketpair()
        zygote.channel.send({"t": "serve"}, [for_zygote.fileno()])
        for_zygote.close()
        self._register(task.supervisor, lambda m, _: self._hear_supervisor(key, m), lambda: None)
        task.supervisor.send(
            {"t": "run", "workload": task.message["workload"], "server": task.message["server"]},
            [for_supervisor.fileno()],
        )
        for_supervisor.close()

        def forked(pid: int) -> None:
            task.supervisor_pid = pid
            self._by_pid[pid] = ("supervisor", key)

        self._fork("supervisor", theirs, forked)
        return None

    def _stale(self, task: _Task, number: int) -> int:
        """The number of the zygote whose sources have changed, of those that this task concerns; 0: none."""
        if (file := task.message.get("file")) is None:
            return 0
        held = self._machine.zygotes.get(tuple(file))
        if held is None or held.state == "parsing" or (zygote := self._zygotes.get(held.number)) is None:
            return 0
        return held.number if sources.changed(zygote.sources) else 0

    def _hear_supervisor(self, key: str, message: Message) -> None:
        task = self._tasks.get(key)
        if task is None:
            return
        match message["t"]:
            case "started":
                task.child_pid, task.state = message["pid"], "running"
                self._tell(task, {"t": "started", "id": key})
            case "reported":
                self._tell(task, {"t": "reported", "id": key, "state": message["state"]})
            case "ended":
                task.ended = message

    def _supervisor_ended(self, key: str, code: int) -> None:
        task = self._tasks.get(key)
        if task is None:
            return
        if task.supervisor is not None and not task.supervisor.closed:
            for message, _ in task.supervisor.receive():
                self._hear_supervisor(key, message)
            self._forget(task.supervisor)
        task.supervisor = None
        if task.ended is not None and task.ended.get("started") is False:
            task.ended, task.state = None, "waiting"
            self._handle(admission.SourcesChanged(task.zygote, key))
            return
        told = task.ended or {"ok": False, "info": f"The task's supervisor ended by itself: {processes.describe(code)}"}
        self._end(key, {**told, "t": "ended", "id": key})

    def _end(self, key: str, message: Message) -> None:
        task = self._tasks.pop(key)
        if task.owner is not None:
            task.owner.send(message)
        else:
            self._ends[key] = message
            while len(self._ends) > _KEPT_ENDS:
                del self._ends[next(iter(self._ends))]
        self._handle(admission.TaskEnded(key))

    @staticmethod
    def _tell(task: _Task, message: Message) -> None:
        if task.owner is not None:
            task.owner.send(message)

    # --- zygotes ---

    def _start_zygote(self, number: int, file: admission.FileKey | None) -> None:
        channel, theirs = wire.pair()
        zygote = self._zygotes[number] = _Zygote(channel, file)
        self._register(channel, lambda m, _: self._hear_zygote(number, m), lambda: None)
        channel.send({"t": "parse", "file": file})

        def forked(pid: int) -> None:
            zygote.pid = pid
            self._by_pid[pid] = ("zygote", number)

        self._fork("zygote", theirs, forked)

    def _hear_zygote(self, number: int, message: Message) -> None:
        zygote = self._zygotes.get(number)
        if zygote is None:
            return
        zygote.sources = [(path, state) for path, state in message["sources"]]
        zygote.unfit = message["unfit"]
        if zygote.unfit:
            _log(f"tasks of {zygote.file} parse for themselves: {zygote.unfit}")
        self._handle((admission.ZygoteUnfit if zygote.unfit else admission.ZygoteReady)(number))

    def _zygote_ended(self, number: int, code: int) -> None:
        zygote = self._zygotes.get(number)
        if zygote is None or zygote.unfit:
            return
        _log(f"the zygote of {zygote.file} ended by itself: {processes.describe(code)}")
        if number == admission.BARE:
            self._forget(zygote.channel)
            self._start_zygote(admission.BARE, None)
            return
        known = self._machine.zygotes.get(zygote.file) if zygote.file else None
        if known is not None and known.state == "parsing":
            zygote.unfit = f"parsing it ended the process: {processes.describe(code)}"
        else:
            del self._zygotes[number]
            self._forget(zygote.channel)
        self._handle(admission.ZygoteDied(number))

    # --- origin ---

    def _start_origin(self) -> None:
        self._origin_ready = False
        ours, theirs = wire.pair()
        self._origin = ours
        with theirs:
            self._origin_process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._register(ours, lambda m, _: self._hear_origin(m), self._origin_gone)
        self._start_zygote(admission.BARE, None)

    def _fork(self, kind: str, theirs: socket.socket, forked: Callable[[int], None]) -> None:
        self._forks += 1
        name = str(self._forks)
        self._waiting_forks[name] = forked
        assert self._origin is not None
        self._origin.send({"t": "fork", "kind": kind, "id": name}, [theirs.fileno()])
        theirs.close()

    def _hear_origin(self, message: Message) -> None:
        match message["t"]:
            case "ready":
                self._origin_ready = True
            case "forked":
                self._waiting_forks.pop(message["id"])(message["pid"])
            case "exit":
                kind, what = self._by_pid.pop(message["pid"])
                (self._supervisor_ended if kind == "supervisor" else self._zygote_ended)(what, message["code"])

    def _origin_gone(self) -> None:
        """Everything that it had forked is gone with it."""
        assert self._origin_process is not None
        code = self._origin_process.wait()
        _log(f"the origin ended by itself: {processes.describe(code)}")
        self._by_pid.clear()
        self._waiting_forks.clear()
        if not self._origin_ready:  # it would not start the next time either; an executor may start another daemon
            for key in list(self._tasks):
                self._end(
                    key,
                    {
                        "t": "ended",
                        "id": key,
                        "ok": False,
                        "info": "Airflow could not be imported by the node daemon's origin; see daemon.log",
                    },
                )
            self.stop()
            return
        numbers = list(self._zygotes)
        for number in numbers:
            self._forget(self._zygotes.pop(number).channel)
        self._start_origin()
        for key, task in list(self._tasks.items()):
            if task.state != "waiting":
                self._supervisor_ended(key, -signal.SIGKILL)
        for number in numbers:
            self._handle(admission.ZygoteDied(number))

    def _forget(self, channel: Channel) -> None:
        if channel.fileno() >= 0:
            self._selector.unregister(channel)
            channel.close()


def _signal(pid: int, number: int) -> None:
    if pid:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} headrace daemon: {text}\n")
    sys.stderr.flush()


def main(place: str, settings: str) -> NoReturn:
    """A daemon's whole life: takes the folder's lock, or leaves it to the daemon that has it.

    Args:
        place: its folder.
        settings: the fields of ``Settings``, as JSON.
    """
    if os.fork():
        os._exit(0)
    os.setsid()
    lock = os.open(places.lock_path(Path(place)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os._exit(0)
    processes.hide_memory()
    processes.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    daemon = Daemon(Path(place), Settings(**json.loads(settings)))
    signal.signal(signal.SIGTERM, daemon.stop)
    try:
        daemon.run()
    finally:
        daemon.close()
    sys.exit(0)
