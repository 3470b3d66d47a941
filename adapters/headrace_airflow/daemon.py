"""The node daemon: a small single-threaded process that outlives the scheduler. No user code, no Airflow, no database.

    HeadraceExecutor ══ socket ══▶ daemon ══▶ origin ──fork──▶ supervisors, zygotes
    airflow headrace …  ══ socket ══▶   │ ◀═══ one connection to each of them
                                        └── Admission decides, this module carries out

It starts when an executor needs it, and ends when it has had neither a scheduler nor a task for ``linger_s``. It also
ends, as soon as it runs nothing, when every scheduler that has come has another environment, other settings or other
packages than it was started with: they start another one, and send that what had not started. What it has started ends
with it, however it ends (processes.py). Where HeadraceXCom is in use it also hosts the node's store
(hosted_store.py), which finishes its durable copies first.

From clients: hello, submit, renew, revoke, adopt, look, drain, evict, status, stop. To schedulers: started, reported,
ended, outdated, room; how workloads ended is kept for a scheduler that comes after one that did not hear it.

A supervisor runs one workload after another, as the workers of stock's LocalExecutor do, and ends when it is idle.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from headrace.obituary import describe_exit
from headrace_airflow import admission, load, places, processes, speculation, wire
from headrace_airflow.admission import BARE, Admission, Limits
from headrace_airflow.clients import Clients
from headrace_airflow.forks import Child, Forks
from headrace_airflow.hosted_store import HostedStore
from headrace_airflow.loop import Loop
from headrace_airflow.parking import Parking
from headrace_airflow.settings import Settings
from headrace_airflow.supervisors import Supervisor, Supervisors
from headrace_airflow.wire import Channel, Message
from headrace_airflow.zygotes import Zygotes

_EAGER_TICK_S: Final = 0.25
_TICK_S: Final = 1.0
_LAZY_TICK_S: Final = 15.0
_KEPT_ENDS: Final = 4_000


@dataclass(slots=True)
class _Task:
    """A workload that has come in and not ended."""

    message: Message
    owner: Channel | None
    supervisor: Supervisor | None = None
    pid: int = 0
    zygote: int = BARE
    state: str = "waiting"
    succeeded: bool = False
    since: float = field(default_factory=time.time)
    started: float | None = None

    @property
    def log_path(self) -> str | None:
        """Of its log, below the folder of all logs."""
        found: str | None = self.message["workload"].get("log_path")
        return found


class Daemon:
    """Owns every connection and carries out what ``Admission`` decides."""

    def __init__(self, place: Path, settings: Settings, store: str = "", fingerprint: str = "") -> None:
        self._place = place
        self._settings = settings
        s = settings
        limits = Limits(s.cpus, s.memory_bytes, s.tasks, s.patience_s, s.zygote_idle_s, s.zygotes, s.longest_wait_s)
        self._machine = Admission(limits)
        self._loop = Loop()
        self.store = HostedStore(store, self._loop, _log)
        self._clients = Clients(fingerprint)
        self._tasks: dict[str, _Task] = {}
        self._ends: dict[str, Message] = {}
        """How the last workloads ended."""
        self._parking = Parking(self._loop, self._start_pulse, self._resume)
        self._load = load.Load()
        self._needed_at = time.monotonic()
        self._started = time.time()
        self._stopping = False
        self._listener = self._listen()
        self._forks = Forks(self._loop, self._origin_lost, processes.take_all_descriptors())
        self._supervisors = Supervisors(self._forks, self._loop, self._hear_supervisor, self._lose_supervisor)
        self._zygotes = Zygotes(self._forks, self._loop, self._handle, _log, self._settings)
        self._zygotes.start(BARE, None)

    # --- life ---

    def run(self) -> None:
        """Serves until nobody needs it."""
        ticked_at = time.monotonic()
        while not self._stopping:
            self._loop.turn(max(0.0, min(ticked_at + self._pause_s() - time.monotonic(), self.store.timeout_s())))
            self.store.look()
            if time.monotonic() >= ticked_at + self._pause_s():
                self._tick()
                ticked_at = time.monotonic()

    def _pause_s(self) -> float:
        """How long to the next tick: not long while a task waits for others to be found asleep."""
        if any(task.state == "waiting" for task in self._tasks.values()):
            return _EAGER_TICK_S
        return _TICK_S if self._tasks or self._supervisors else min(_LAZY_TICK_S, self._settings.linger_s)

    def close(self) -> None:
        """Ends everything that it has started but the store, and waits for it."""
        places.socket_path(self._place).unlink(missing_ok=True)
        self._listener.close()
        for client in self._clients:  # they see at once that it is gone: the store may take a while
            client.drain(1.0)
            self._loop.forget(client)
        for task in self._tasks.values():
            if task.pid:
                processes.kill_group(task.pid)
        self._forks.close()
        processes.end_children(self.store.lasting_pids())

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
        self._loop.watch(listener, self._accept)
        return listener

    def _tick(self) -> None:
        now = time.monotonic()
        if self._tasks:
            self._measure()
        self._handle(admission.Ticked())
        self.store.host()
        processes.reap_adopted(self.store.io_pids() | {self._forks.pid})
        self._supervisors.retire()
        for client in self._clients.deaf():
            self._loop.forget(client)
            self._lose_client(client)
        if self._tasks or self._clients.schedulers:
            self._needed_at = now
        elif now - self._needed_at >= self._settings.linger_s:
            self.stop()
        self._make_way()

    def _make_way(self) -> bool:
        """Ends if it is outdated and runs nothing; not while it is drained, which another one would not be."""
        runs = any(task.state != "waiting" for task in self._tasks.values())
        if runs or self._machine.drained or not self._clients.find_daemon_outdated:
            return False
        _log("makes way: the scheduler has another environment, other settings or other packages")
        self.stop()
        return True

    def _measure(self) -> None:
        groups = {task.pid: key for key, task in self._tasks.items() if task.pid}
        for pid, cpus in self._load.measure(set(groups)).items():
            self._handle(admission.TaskMeasured(groups[pid], cpus))
        self._handle(admission.MemoryMeasured(load.memory_is_plenty()))

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
        self._clients.came(client)
        self._loop.listen(client, lambda message: self._hear(client, message), lambda: self._lose_client(client))

    def _lose_client(self, client: Channel) -> None:
        self._clients.left(client)
        for task in self._tasks.values():
            if task.owner is client:
                task.owner = None

    def _hear(self, client: Channel, message: Message) -> None:
        match message.get("t"):
            case "hello":
                self._welcome(client, message)
            case "submit":
                self._submit(client, message)
            case "renew":
                if task := self._tasks.get(message["id"]):
                    task.message["workload"]["token"] = message["token"]
            case "revoke":
                self._handle(admission.TaskRevoked(message["id"]))
            case "adopt":
                client.send({"t": "adopted", **self._adopt(client, message["ids"])})
            case "look":
                for key in message["ids"]:
                    if (task := self._tasks.get(key)) and task.supervisor is not None:
                        task.supervisor.child.channel.send({"t": "look"})
                    elif key in self._parking:
                        self._resume(key, look=True)
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

    def _welcome(self, client: Channel, message: Message) -> None:
        self._clients.said_hello(client, message)
        self._clients.welcome(client, ends=self._make_way())

    def _submit(self, client: Channel, message: Message) -> None:
        key = message["id"]
        if key in self._tasks:
            self._give(key, client)
            return
        self._tasks[key] = _Task(message, client)
        file = tuple(message["file"]) if message.get("file") else None
        numbers = (message.get("priority", 0), message.get("cpus"), message.get("memory_bytes", 0))
        self._handle(admission.TaskSubmitted(key, file, *numbers, _instance(message)))

    def _adopt(self, client: Channel, ids: list[str]) -> Message:
        """Makes a scheduler the owner of what it asks for; returns what is known, where the logs of that are, and what
        of it has not started.
        """
        known, log_paths, waiting = [], {}, []
        for key in ids:
            if task := self._tasks.get(key):
                self._give(key, client)
                known.append(key)
                log_paths[key] = task.log_path
                if task.state == "waiting":
                    waiting.append(task.message)
            elif end := self._ends.get(key):
                client.send(end)
                known.append(key)
        return {"ids": known, "log_paths": log_paths, "waiting": waiting}

    def _give(self, key: str, client: Channel) -> None:
        """Makes a scheduler the owner of a task; the one that was it so far shall not wait for its end."""
        task = self._tasks[key]
        former, task.owner = task.owner, client
        if former is not None and former is not client:
            former.send({"t": "ended", "id": key, "ok": False, "dropped": True})

    def _evict(self) -> int:
        """Has every parsed DAG file be parsed again."""
        held = self._zygotes.with_files()
        for number in held:
            self._handle(admission.SourcesChanged(number, ""))
        return len(held)

    def _status(self) -> Message:
        limits = self._settings
        total_bytes, free_bytes = load.memory_bytes()
        return {
            "pid": os.getpid(),
            "since": self._started,
            "drained": self._machine.drained,
            "outdated": self._clients.find_daemon_outdated,
            "limits": {"cpus": limits.cpus, "memory_bytes": limits.memory_bytes, "tasks": limits.tasks},
            "schedulers": self._clients.schedulers,
            "memory": {"total_bytes": total_bytes, "free_bytes": free_bytes},
            "supervisors": self._supervisors.describe(),
            "tasks": [self._describe(key, task) for key, task in self._tasks.items()],
            "ahead": [
                {"state": ahead.state, "instance": list(ahead.offer.instance)}
                for ahead in self._machine.ahead.known.values()
            ],
            "zygotes": self._zygotes.describe(),
        }

    def _describe(self, key: str, task: _Task) -> Message:
        told = self._machine.tasks.get(key)
        ti = task.message["workload"].get("ti") or {}
        return {
            "id": key,
            "name": task.message.get("name", ""),
            "dag_id": ti.get("dag_id"),  # none where it is no task of a DAG's, but a callback, for example
            "state": task.state,
            "pid": task.pid,
            "supervisor_pid": task.supervisor.child.pid if task.supervisor else 0,
            "since": task.since,
            "started": task.started,
            "waits_for": self._machine.waits_for(key),
            "cpus": told.cpus if told else 0.0,
            "memory_bytes": told.memory_bytes if told else 0,
            "log_path": task.log_path,
        }

    # --- decisions and their execution ---

    def _handle(self, event: admission.Event) -> None:
        pending = [event]
        while pending and not self._stopping:
            for command in self._machine.handle(pending.pop(0), time.monotonic()):
                if answer := self._perform(command):
                    pending.append(answer)
        self._clients.tell_room(full=self._machine.full, drained=self._machine.drained)

    def _perform(self, command: admission.Command) -> admission.Event | None:
        match command:
            case admission.StartTask(key, number, ahead):
                if stale := self._stale(self._tasks[key]):
                    return admission.SourcesChanged(stale, key)
                if lacking := self._zygotes.lacks(number):
                    return self._note_end(key, self._failure(key, lacking))
                self._start_task(key, number, ahead)
            case speculation.RunAhead(id, number):
                self._zygotes.send(number, {"t": "ahead", "id": id})
            case speculation.StopAhead(id, number):
                self._zygotes.send(number, {"t": "discard", "id": id})
            case admission.DropTask(key):
                self._end(key, {"dropped": True, "ok": False})
            case admission.KillTask(key):
                if (supervisor := self._tasks[key].supervisor) is not None:
                    self._forks.kill(supervisor.child)  # it reports nothing then: the state is the scheduler's affair
                elif key in self._parking:
                    self._end_parked(key)
            case admission.StartZygote(number, file):
                self._zygotes.start(number, file)
            case admission.StopZygote(number):
                self._zygotes.stop(number)
        return None

    def _stale(self, task: _Task) -> int:
        """The number of the zygote that holds the task's file as it no longer is; 0: there is none."""
        file = task.message.get("file")
        held = self._machine.zygotes.get(tuple(file)) if file else None
        return held.number if held is not None and self._zygotes.is_stale(held.number) else 0

    # --- supervisors ---

    def _start_task(self, key: str, number: int, ahead: str) -> None:
        task = self._tasks[key]
        task.supervisor = supervisor = self._supervisors.take(key)
        task.zygote, task.state = number, "starting"
        for_zygote, for_supervisor = socket.socketpair()
        with for_zygote, for_supervisor:
            cpus = task.message.get("cpus") or self._settings.cpus
            serve = {"t": "serve", "id": key, "instance": _instance(task.message), "cpus": cpus, "ahead": ahead}
            self._zygotes.send(number, serve, [for_zygote.fileno()])
            run = {name: task.message[name] for name in ("name", "workload", "server")}
            supervisor.child.channel.send({"t": "run", **run}, [for_supervisor.fileno()])

    def _start_pulse(self, hear: Callable[[Message], None], exited: Callable[[int], None]) -> Child:
        return self._forks.fork("pulse", lambda message, _fds: hear(message), exited)

    def _resume(self, key: str, look: bool) -> None:
        """Has a supervisor look after a parked task again; ``look``: the API server wants something of it."""
        record, fds = self._parking.leave(key)
        task = self._tasks[key]
        task.supervisor = supervisor = self._supervisors.take(key)
        run = {name: task.message[name] for name in ("name", "workload", "server")}
        supervisor.child.channel.send({"t": "resume", **run, "parked": record, "look": look}, fds)
        for fd in fds:
            os.close(fd)

    def _park(self, supervisor: Supervisor, task: _Task, key: str, record: Message, fds: list[int]) -> None:
        is_surplus = self._supervisors.has_idle()
        self._supervisors.release(supervisor)
        task.supervisor = None
        if is_surplus:
            self._supervisors.end(supervisor)
        self._parking.park(key, task.message["workload"], task.message["server"], record, fds)
        if self._machine.tasks[key].revoked:  # meanwhile: the supervisor was killed, but not before it had parked
            self._end_parked(key)

    def _end_parked(self, key: str) -> None:
        self._parking.drop(key)
        self._end(key, {"ok": False, "info": "The task was revoked"})

    def _hear_supervisor(self, supervisor: Supervisor, message: Message, fds: list[int]) -> None:
        key = supervisor.task
        task = None if key is None else self._tasks.get(key)
        if key is None or task is None:
            for fd in fds:
                os.close(fd)
            return
        match message["t"]:
            case "started":
                task.pid, task.state, task.started = message["pid"], "running", time.time()
                self._zygotes.has_started(task.zygote)
                self._tell(task, {"t": "started", "id": key})
            case "parked":
                self._park(supervisor, task, key, message, fds)
            case "reported":
                task.succeeded = message["state"] == "success"
                self._tell(task, {"t": "reported", "id": key, "state": message["state"]})
            case "ended":
                self._supervisors.release(supervisor)
                task.supervisor, task.pid = None, 0
                if message.get("last"):
                    self._supervisors.end(supervisor)
                if message.get("started") is False:
                    task.state = "waiting"
                    self._handle(admission.ZygoteDied(task.zygote, key))
                else:
                    self._end(key, message)

    def _lose_supervisor(self, key: str, code: int) -> None:
        if key in self._tasks:
            why = f"The task's supervisor ended by itself, and the task with it: {describe_exit(code)}"
            self._end(key, self._failure(key, why))

    def _failure(self, key: str, why: str) -> Message:
        """How a workload ended that no supervisor can speak for: whoever hears of it says why in its log."""
        return {"ok": False, "info": why, "log_path": self._tasks[key].log_path}

    def _end(self, key: str, how: Message) -> None:
        self._handle(self._note_end(key, how))

    def _note_end(self, key: str, how: Message) -> admission.TaskEnded:
        """Tells of an end; what is returned is for the machine."""
        task = self._tasks.pop(key)
        message = {**how, "t": "ended", "id": key}
        self._tell(task, message)
        self._ends[key] = message  # also when it was told: a scheduler may be killed before it has read it
        while len(self._ends) > _KEPT_ENDS:
            del self._ends[next(iter(self._ends))]
        self._make_way()
        return admission.TaskEnded(key, task.succeeded)

    @staticmethod
    def _tell(task: _Task, message: Message) -> None:
        if task.owner is not None:
            task.owner.send(message)

    # --- origin ---

    def _origin_lost(self, code: int) -> None:
        _log(f"the origin ended by itself: {describe_exit(code)}")
        if self._stopping:
            return
        if self._forks.alive:
            self._zygotes.start(BARE, None)
            return
        info = "Airflow could not be imported by the node daemon's origin; see its log"
        for key in list(self._tasks):
            self._end(key, self._failure(key, info))
        self.stop()


def _instance(message: Message) -> speculation.Instance | None:
    """The task of a run that a workload is; ``None`` for mapped ones, and for what is no task."""
    ti = message["workload"].get("ti")
    if not ti or ti.get("map_index", -1) >= 0:
        return None
    return speculation.Instance(ti["dag_id"], ti["run_id"], ti["task_id"])


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} headrace daemon: {text}\n")
    sys.stderr.flush()


def main(place: str) -> NoReturn:
    """A daemon's whole life: takes the folder's lock, or leaves it to the daemon that has it.

    Its standard input has, as JSON: ``settings``, the fields of ``Settings``; ``store``, those of ``StoreSettings``
    (empty: there shall be no store); ``fingerprint``, of what it was started with (see ``client.Setup``). Not in its
    command line, which everybody may read: the store's may have credentials.

    Args:
        place: its folder.
    """
    given = json.load(sys.stdin)
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), sys.stdin.fileno())
    if os.fork():
        os._exit(0)
    os.setsid()
    if (lock := places.take_lock(Path(place))) is None:
        os._exit(0)
    processes.hide_memory()
    processes.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    daemon = Daemon(Path(place), Settings(**given["settings"]), given["store"], given["fingerprint"])
    signal.signal(signal.SIGTERM, daemon.stop)
    try:
        daemon.run()
    finally:
        daemon.close()
        places.remove(Path(place))
        os.close(lock)  # from now on there may be another daemon
        daemon.store.finish()
    sys.exit(0)
