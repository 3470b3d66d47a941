"""The store service: carries out what the ledger decides. Single-threaded; waits for nothing but events.

A loop of its own (``python -m headrace_airflow.store_service``) or somebody else's selector drives it: ``fileno()`` is
readable when ``handle()`` should be called, which should also happen after ``timeout_s()`` seconds; a host that ends
calls ``finish()``. A host must not fork without exec: children would keep the lock and the memory.

Requests are JSON objects with ``op``; every one is answered, in order, by one object with ``ok`` or ``error``:

=========  ===========================================  ==============================================================
op         says                                         answered with
=========  ===========================================  ==============================================================
reserve    size                                         place, used_before, and a descriptor to write the image to
commit     record; data, or after a reserve             nothing more
get        record                                       data, or a descriptor that begins with the image
delete     record                                       nothing more
list       -                                            objects
status     -                                            what ``status`` returns
flush      -                                            nothing more: when every durable copy is there, or has failed
end        -                                            nothing more; then as ``begin_end``
=========  ===========================================  ==============================================================

Any request may say ``closed``: ids of objects that the client has no map of any more.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from headrace_airflow.store import segments, storage
from headrace_airflow.store.errors import StoreUnreachableError
from headrace_airflow.store.home import Home
from headrace_airflow.store.lane import HelperLane, error_of
from headrace_airflow.store.ledger import Command, Drop, Erase, Ledger, Place, Slot, Write
from headrace_airflow.store.settings import StoreSettings
from headrace_airflow.wire import Channel, Message, peer_uid

SMALL_BYTES: Final = 32 * 1024
"""An image up to this size rides in messages, and takes no descriptor."""

_SOON_S: Final = 1.0
_LATER_S: Final = 30.0
_SWEEP_EVERY_S: Final = 86400.0
_POOL_SHARE: Final = 4
_POOL_MOST: Final = 2 << 30


@dataclass(slots=True, eq=False)
class _Client:
    channel: Channel
    number: int
    place: Place = "memory"
    fd: int | None = None
    """Reserved: the service's own descriptor of what the client is writing."""
    size_bytes: int = 0
    events: int = 0


@dataclass(slots=True)
class _Content:
    """What the service holds of an object that is in memory or in a file: its bytes, or a descriptor."""

    record: dict[str, Any]
    data: bytes | None = None
    fd: int | None = None
    reusable: bool = False
    """The descriptor is of a segment, not of a file."""


@dataclass(slots=True)
class _Restore:
    record: dict[str, Any]
    ticket: int
    waiters: list[_Client] = field(default_factory=list)


class StoreService:
    """The store of one node. Not thread-safe.

    Args:
        settings: see there.
        ends_when_idle: whether ``ended`` becomes true after ``settings.idle_s`` without a client.

    Raises:
        StoreUnreachableError: another service of this node is at work.
    """

    def __init__(self, settings: StoreSettings, *, ends_when_idle: bool = False) -> None:
        self.settings = settings
        self.ended = False
        """Nobody needs the service any more, or it was asked to end and has finished: call ``close``."""
        self.home = Home(settings.home)
        lock = self.home.lock()
        if lock is None:
            raise StoreUnreachableError(f"a store service is at work already in {self.home.path}")
        self._lock_fd = lock
        self.home.remove_earlier()
        self._listener = self.home.listen()
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._ledger = Ledger(settings.budget_bytes, settings.ttl_s, settings.grace_s, settings.warm_s)
        self._pool = segments.Pool(min(_POOL_MOST, settings.budget_bytes // _POOL_SHARE))
        self._writer = HelperLane(f"writer-{uuid.uuid4().hex}", settings)
        self._reader = HelperLane("reader", settings)
        self._lanes = {self._writer: -1, self._reader: -1}
        """Lane → the descriptor under which it is polled."""
        self._clients: dict[int, _Client] = {}
        self._contents: dict[str, _Content] = {}
        self._urls: dict[str, str] = {}
        """Of every object that the ledger knows."""
        self._restores: dict[str, _Restore] = {}
        self._flushes: list[_Client] = []
        self._numbers = 0
        self._ending_since_s = 0.0
        self._ends_when_idle = ends_when_idle
        now_s = time.monotonic()
        self._idle_since_s, self._look_s, self._sweep_s = now_s, now_s, now_s + _LATER_S
        self._ops: dict[str, Callable[[_Client, Message], Message | None]] = {
            "reserve": self._reserve,
            "commit": self._commit,
            "get": self._get,
            "delete": self._delete,
            "list": lambda client, message: {"objects": self.objects()},
            "status": lambda client, message: self.status(),
            "flush": self._flush,
            "end": self._end,
        }

    # The loop

    def fileno(self) -> int:
        return self._poll.fileno()

    def timeout_s(self) -> float:
        """After how many seconds ``handle`` should be called even if nothing is readable."""
        return max(0.0, self._look_s - time.monotonic())

    def handle(self, timeout_s: float = 0.0) -> None:
        """Waits for at most ``timeout_s`` and does what there is to do."""
        for fd, _ in self._poll.poll(timeout_s):
            if fd == self._listener.fileno():
                self._accept()
            elif (client := self._clients.get(fd)) is not None:
                self._hear(client)
            else:
                for lane, polled in list(self._lanes.items()):
                    if polled == fd:
                        lane.handle()
                        self._watch_lanes()  # before anything else gets the number of a descriptor that was closed
        if time.monotonic() >= self._look_s:
            self._look()
        self._watch_lanes()
        self._answer_flushes()
        if self._ending_since_s and not self._pending():
            self.ended = True

    def begin_end(self) -> None:
        """Ends once every durable copy is there, or has failed once more."""
        if not self._ending_since_s:
            self._ending_since_s = time.monotonic()
            self._look_s = 0.0
            self._perform(self._ledger.retried())

    def finish(self, timeout_s: float = 300.0) -> list[str]:
        """For a host that ends: makes every durable copy, for at most so long, and closes. Returns what ``close`` does.

        Clients are served meanwhile. Copies that an I/O process works on after that are still made, by that process.
        """
        end_s = time.monotonic() + timeout_s
        self.begin_end()
        while not self.ended and time.monotonic() < end_s:
            self.handle(min(_SOON_S, self.timeout_s()))
        return self.close()

    def close(self) -> list[str]:
        """Lets go of everything; returns the URLs of durable copies that were not made, and now never will be."""
        lost = [self._urls[id] for id in self._ledger.undurable() if self._ledger.entries[id].durable == "failed"]
        self.home.unlink()
        for client in list(self._clients.values()):
            self._drop_client(client)
        for lane in self._lanes:
            lane.close()
        for content in self._contents.values():
            if content.fd is not None:
                os.close(content.fd)
        self._contents.clear()
        self._pool.close()
        self._poll.close()
        self._listener.close()
        os.close(self._lock_fd)
        return lost

    # What is asked from outside

    def objects(self) -> list[dict[str, Any]]:
        """Every object that is known, with where it is; nothing of its value."""
        now_s = time.monotonic()
        found = []
        for id, entry in self._ledger.entries.items():
            content = self._contents.get(id)
            record = content.record if content is not None else {}
            found.append({
                "id": id, "slot": list(entry.slot), "size": entry.size_bytes, "place": entry.place,
                "durable": entry.durable, "reason": entry.reason, "readers": sum(entry.readers.values()),
                "unused_s": round(now_s - entry.used_s, 3), "deleted": entry.deleted_s is not None,
                "type": record.get("type", ""), "shape": record.get("shape", ""), "url": self._urls[id],
            })  # fmt: skip
        return found

    def status(self) -> dict[str, Any]:
        """Counts and bytes, and what goes wrong."""
        entries = self._ledger.entries.values()
        failed = [entry for entry in entries if entry.durable == "failed"]
        return {
            "pid": os.getpid(), "objects": len(entries), "clients": len(self._clients),
            "memory_bytes": self._ledger.memory_bytes, "budget_bytes": self._ledger.budget_bytes,
            "spilled_bytes": sum(entry.size_bytes for entry in entries if entry.place == "file"),
            "pool_bytes": self._pool.size_bytes, "url": self.settings.url,
            "undurable": len(self._ledger.undurable()), "failed": len(failed),
            "reasons": sorted({entry.reason for entry in failed}), "jobs": sum(lane.busy for lane in self._lanes),
        }  # fmt: skip

    # Clients

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # none is waiting, or there is no descriptor left for it
                return
            if peer_uid(sock) != os.geteuid():
                sock.close()
                continue
            self._numbers += 1
            client = _Client(Channel(sock), self._numbers)
            self._clients[sock.fileno()] = client
            self._poll.register(sock, select.EPOLLIN)

    def _hear(self, client: _Client) -> None:
        client.channel.flush()
        for message, fds in client.channel.receive():
            for fd in fds:
                os.close(fd)
            self._answer(client, message)
        if client.channel.closed:
            self._drop_client(client)
        else:
            self._watch(client)

    def _answer(self, client: _Client, message: Message) -> None:
        self._idle_since_s = time.monotonic()
        for id in message.get("closed", ()):
            self._ledger.closed(id, client.number)
        try:
            answer = self._ops[message["op"]](client, message)
        except Exception as error:  # a broken request must harm nobody else
            answer = {"error": f"{type(error).__name__}: {error}", "kind": "failed"}
        if answer is not None:
            self._send(client, answer)

    def _send(self, client: _Client, answer: Message, fd: int | None = None) -> None:
        client.channel.send({"ok": "error" not in answer, **answer}, [fd] if fd is not None else [])
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if client.channel.unsent else 0)
        if events != client.events and client.channel.fileno() >= 0:
            self._poll.modify(client.channel.fileno(), events)
            client.events = events

    def _drop_client(self, client: _Client) -> None:
        fd = client.channel.fileno()
        self._poll.unregister(fd)
        del self._clients[fd]
        client.channel.close()
        self._forget_reservation(client)
        self._ledger.reader_lost(client.number)
        self._flushes = [waiting for waiting in self._flushes if waiting is not client]
        self._idle_since_s = time.monotonic()

    # Requests

    def _reserve(self, client: _Client, message: Message) -> Message | None:
        self._forget_reservation(client)
        size = client.size_bytes = int(message["size"])
        client.place, commands = self._ledger.reserved(client.number, size)
        self._perform(commands)
        used_before = False
        try:
            if client.place == "file":
                client.fd = segments.spill_file(self.settings.spill, size)
            else:
                client.fd = self._pool.take(size)
                used_before = client.fd is not None
                self._pool.trim(max(0, self._ledger.budget_bytes - self._ledger.memory_bytes))
                client.fd = segments.create(size) if client.fd is None else client.fd
        except OSError as error:
            self._forget_reservation(client)
            return {"error": self._no_room(size, error), "kind": "full"}
        theirs = segments.reopen(client.fd, os.O_RDWR)
        self._send(client, {"place": client.place, "used_before": used_before}, theirs)
        os.close(theirs)
        return None

    def _no_room(self, size: int, error: OSError) -> str:
        free = self._ledger.budget_bytes - self._ledger.memory_bytes
        return (
            f"no room for {size} bytes: {free} of {self._ledger.budget_bytes} bytes of memory are free ([headrace] "
            f"xcom_memory), and {self.settings.spill} cannot take them: {error.strerror}"
        )

    def _commit(self, client: _Client, message: Message) -> Message | None:
        record = message["record"]
        id, slot, size = record["id"], _slot(record), int(record["bytes"])
        if "data" in message:
            content = self._small(client, record, b64decode(message["data"]))
        elif client.fd is None or size != client.size_bytes:
            return {"error": "nothing was reserved for this", "kind": "failed"}
        else:
            content = _Content(record, fd=client.fd, reusable=client.place == "memory")
            client.fd = None
        place = client.place
        self._forget_reservation(client)
        self._contents[id] = content
        self._urls[id] = record["url"]
        self._perform(self._ledger.put(id, slot, size, place, time.monotonic()))
        return {}

    def _small(self, client: _Client, record: dict[str, Any], data: bytes) -> _Content:
        self._forget_reservation(client)
        client.place, commands = self._ledger.reserved(client.number, len(data))
        self._perform(commands)
        if client.place == "memory":
            return _Content(record, data=data)
        fd = segments.spill_file(self.settings.spill, len(data))
        os.pwrite(fd, data, 0)
        return _Content(record, fd=fd)

    def _forget_reservation(self, client: _Client) -> None:
        self._ledger.given_back(client.number)
        if client.fd is not None:
            os.close(client.fd)
            client.fd = None

    def _get(self, client: _Client, message: Message) -> Message | None:
        record = message["record"]
        id = record["id"]
        place = self._ledger.opened(id, client.number, time.monotonic())
        if place in ("memory", "file"):
            self._hand_out(client, id)
        else:
            self._restore(client, record)
        return None

    def _hand_out(self, client: _Client, id: str) -> None:
        content = self._contents[id]
        if content.data is not None:
            self._ledger.closed(id, client.number)
            self._send(client, {"data": b64encode(content.data).decode()})
            return
        assert content.fd is not None
        theirs = segments.reopen(content.fd, os.O_RDONLY)
        self._send(client, {}, theirs)
        os.close(theirs)

    def _delete(self, client: _Client, message: Message) -> Message:
        record = message["record"]
        if record["id"] in self._ledger.entries:
            self._perform(self._ledger.deleted(record["id"], time.monotonic()))
        else:
            self._erase(record["url"])
        self._look_s = 0.0
        return {}

    def _flush(self, client: _Client, message: Message) -> None:
        self._flushes.append(client)

    def _answer_flushes(self) -> None:
        if self._flushes and not self._pending():
            waiting, self._flushes = self._flushes, []
            for client in waiting:
                self._send(client, {"failed": self.status()["failed"]})

    def _end(self, client: _Client, message: Message) -> Message:
        self.begin_end()
        return {}

    # Durable copies

    def _restore(self, client: _Client, record: dict[str, Any]) -> None:
        id = record["id"]
        if id in self._restores:
            self._restores[id].waiters.append(client)
            return
        self._numbers += 1
        restore = _Restore(record, self._numbers, [client])
        size = int(record["bytes"])
        place: Place = "file"
        if storage.local_path(record["url"]) is None:
            place, commands = self._ledger.reserved(restore.ticket, size)
            self._perform(commands)
            self._pool.trim(max(0, self._ledger.budget_bytes - self._ledger.memory_bytes))
        self._restores[id] = restore
        job = {"do": "read", "url": record["url"], "id": id, "size": size, "place": place, "writer": self._writer.role}
        self._reader.submit(job, None, functools.partial(self._restored, id, place), size)

    def _restored(self, id: str, place: Place, message: Message, fds: list[int]) -> None:
        restore = self._restores.pop(id)
        self._ledger.given_back(restore.ticket)
        error = error_of(message)
        if error is not None or not fds:
            for fd in fds:
                os.close(fd)
            self._ledger.copy_lost(id)
            kind = "lost" if message.get("missing") else "unreadable"
            for client in restore.waiters:
                self._send_if_there(client, {"error": error or "no descriptor came", "kind": kind})
            return
        before = self._contents.pop(id, None)
        if before is not None and before.fd is not None:
            os.close(before.fd)
        self._contents[id] = _Content(restore.record, fd=fds[0], reusable=place == "memory")
        self._urls[id] = restore.record["url"]
        self._ledger.restored(id, _slot(restore.record), int(restore.record["bytes"]), place, time.monotonic())
        for client in restore.waiters:
            if self._clients.get(client.channel.fileno()) is client:
                self._ledger.opened(id, client.number, time.monotonic())
                self._hand_out(client, id)

    def _send_if_there(self, client: _Client, answer: Message) -> None:
        if self._clients.get(client.channel.fileno()) is client:
            self._send(client, answer)

    def _perform(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Write):
                self._write(command.id)
            elif isinstance(command, Drop):
                self._let_go(command.id)
            elif isinstance(command, Erase):
                self._let_go(command.id)
                self._erase(self._urls.pop(command.id))

    def _write(self, id: str) -> None:
        content = self._contents[id]
        record = content.record
        info = {"id": id, "slot": record["slot"], "type": record["type"], "shape": record["shape"]}
        job = {"do": "write", "url": record["url"], "size": record["bytes"], "info": info}
        fd = None
        if content.data is not None:
            job["data"] = b64encode(content.data).decode()
        else:
            assert content.fd is not None
            fd = segments.reopen(content.fd, os.O_RDONLY)
        self._writer.submit(job, fd, functools.partial(self._written, id), int(record["bytes"]))

    def _written(self, id: str, message: Message, fds: list[int]) -> None:
        error = error_of(message)
        if error is None:
            self._ledger.written(id)
        else:
            self._ledger.write_failed(id, error, time.monotonic())
            self._look_s = min(self._look_s, time.monotonic() + _SOON_S)

    def _let_go(self, id: str) -> None:
        content = self._contents.pop(id, None)
        if content is not None and content.fd is not None:
            if content.reusable:
                self._pool.give(content.fd)
            else:
                os.close(content.fd)

    def _erase(self, url: str) -> None:
        self._writer.submit({"do": "erase", "url": url}, None, lambda message, fds: None)

    # Time

    def _look(self) -> None:
        now_s = time.monotonic()
        self._perform(self._ledger.ticked(now_s))
        self._pool.trim_old()
        for lane in self._lanes:
            lane.look()
            self._watch_lanes()
        if self.settings.ttl_s and now_s >= self._sweep_s:
            self._sweep_s = now_s + _SWEEP_EVERY_S
            runs = self._ledger.runs_used_since(now_s - self.settings.ttl_s)
            keep = [storage.run_folder(dag_id, run_id) for dag_id, run_id in runs]
            job = {"do": "sweep", "ttl_s": self.settings.ttl_s, "keep": keep}
            self._writer.submit(job, None, lambda message, fds: None)
        soon = self._ledger.waits() or self._pending() or self._ending_since_s
        self._look_s = now_s + (_SOON_S if soon else _LATER_S)
        if self._ends_when_idle:
            self._look_s = min(self._look_s, now_s + max(_SOON_S, self.settings.idle_s / 4))
            idle = not self._clients and not self._pending() and not self._ledger.undurable()
            if idle and now_s - self._idle_since_s >= self.settings.idle_s:
                self.begin_end()

    def _pending(self) -> bool:
        return any(lane.busy for lane in self._lanes)

    def _watch_lanes(self) -> None:
        for lane, polled in list(self._lanes.items()):
            fd = lane.channel.fileno() if lane.channel is not None else -1
            if fd != polled and polled >= 0:
                with contextlib.suppress(OSError, ValueError):  # closed: the kernel has forgotten it already
                    self._poll.unregister(polled)
            if fd >= 0:
                unsent = lane.channel is not None and lane.channel.unsent
                events = select.EPOLLIN | (select.EPOLLOUT if unsent else 0)
                try:
                    self._poll.modify(fd, events)
                except FileNotFoundError:  # a new one, perhaps under the old number
                    self._poll.register(fd, events)
            self._lanes[lane] = fd


def _slot(record: dict[str, Any]) -> Slot:
    dag_id, run_id, task_id, map_index, key = record["slot"]
    return Slot(str(dag_id), str(run_id), str(task_id), int(map_index), str(key))
