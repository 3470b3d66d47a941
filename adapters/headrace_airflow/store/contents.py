"""What the service holds of each object, and what it has I/O processes do: carries out what the ledger decides.

Knows clients only as the numbers of readers and tickets. Whatever may take long (disks, networks) is a job for an I/O
process; its outcome is handed to a callback.

Invariant: every descriptor in here belongs to one object, to one ``Room``, or to the pool.
"""

from __future__ import annotations

import functools
import os
import time
import uuid
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from headrace_airflow.store import segments, storage
from headrace_airflow.store.lane import HelperLane, error_of
from headrace_airflow.store.ledger import Command, Drop, Erase, Ledger, Place, Slot, Write
from headrace_airflow.store.settings import StoreSettings
from headrace_airflow.wire import Message

Record = dict[str, Any]
"""What a reference says of an object; see :mod:`headrace_airflow.store.client`."""

_SWEEP_FIRST_S: Final = 30.0
_SWEEP_EVERY_S: Final = 86400.0
_POOL_SHARE: Final = 0.25
"""Of the budget: what may be kept of memory that nobody uses."""
_POOL_MOST_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not to be had, for the client."""

    error: str
    kind: str
    """``full``; ``lost``: there is no durable copy; ``unreadable``: there is one."""


@dataclass(slots=True)
class Room:
    """Where somebody may write one image. Whoever has it closes it, unless it is put."""

    ticket: int
    place: Place
    size_bytes: int
    fd: int
    used_before: bool = False
    """There are pages already, so that copying into a map is faster than writing."""


@dataclass(slots=True)
class Content:
    """What the service holds of an object that is in memory or in a file: its bytes, or a descriptor."""

    record: Record
    data: bytes | None = None
    fd: int | None = None
    reusable: bool = False
    """The descriptor is of a segment, not of a file."""


# Told what became of a request, at once or later: `reserve`'s, `put_small`'s, `get`'s.
Given: TypeAlias = "Callable[[Room | Refusal], None]"
Stored: TypeAlias = "Callable[[Refusal | None], None]"
Found: TypeAlias = "Callable[[Content | Refusal], None]"


@dataclass(slots=True)
class _Restore:
    record: Record
    ticket: int
    waiters: list[tuple[int, Found]] = field(default_factory=list)


class Contents:
    """The objects of one node. Not thread-safe.

    Args:
        settings: see there.
    """

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.budget_bytes, settings.ttl_s, settings.grace_s, settings.warm_s)
        self._pool = segments.Pool(min(_POOL_MOST_BYTES, int(_POOL_SHARE * settings.budget_bytes)))
        self._writer = HelperLane(f"writer-{uuid.uuid4().hex}", settings)
        self._reader = HelperLane("reader", settings)
        self.lanes = (self._writer, self._reader)
        self._held: dict[str, Content] = {}
        self._urls: dict[str, str] = {}
        """Of every object that the ledger knows."""
        self._restores: dict[str, _Restore] = {}
        self._tickets = 0
        self._sweep_s = time.monotonic() + _SWEEP_FIRST_S
        self.restless = False
        """``look`` should be called at once: it knows when to do so again."""

    # Putting

    def reserve(self, size_bytes: int, given: Given) -> None:
        """Makes room for an image, in memory or in a file."""
        ticket, place = self._reserved(size_bytes)
        if place == "file":
            self._spill({"size": size_bytes}, ticket, given)
            return
        fd = self._pool.take(size_bytes)
        self._trim()
        room: Room | Refusal
        try:
            room = Room(ticket, place, size_bytes, segments.create(size_bytes) if fd is None else fd, fd is not None)
        except OSError as error:
            room = self._refused(size_bytes, ticket, str(error))
        given(room)

    def put(self, record: Record, room: Room) -> None:
        """An image was written into the room, which belongs to this object from now on."""
        self._put(Content(record, fd=room.fd, reusable=room.place == "memory"), room.ticket, room.place)

    def put_small(self, record: Record, data: bytes, stored: Stored) -> None:
        """Takes an image that is small enough not to be worth a descriptor, unless memory is full."""
        ticket, place = self._reserved(len(data))
        if place == "memory":
            self._put(Content(record, data=data), ticket, place)
            stored(None)
            return

        def spilled(room: Room | Refusal) -> None:
            if isinstance(room, Room):
                self.put(record, room)
            stored(room if isinstance(room, Refusal) else None)

        self._spill({"size": len(data), "data": b64encode(data).decode()}, ticket, spilled)

    def give_back(self, room: Room) -> None:
        """Room is not used after all."""
        self.ledger.given_back(room.ticket)
        os.close(room.fd)

    def _reserved(self, size_bytes: int) -> tuple[int, Place]:
        self._tickets += 1
        place, commands = self.ledger.reserved(self._tickets, size_bytes)
        self._perform(commands)
        return self._tickets, place

    def _trim(self) -> None:
        self._pool.trim(max(0, self.ledger.budget_bytes - self.ledger.memory_bytes))

    def _spill(self, job: Message, ticket: int, given: Given) -> None:
        size_bytes = int(job["size"])

        def answered(message: Message, fds: list[int]) -> None:
            error = error_of(message)
            if error is None and fds:
                given(Room(ticket, "file", size_bytes, fds[0]))
            else:
                given(self._refused(size_bytes, ticket, error or "no descriptor came"))

        self._reader.submit({"do": "spill", **job}, None, answered, size_bytes)

    def _refused(self, size_bytes: int, ticket: int, error: str) -> Refusal:
        self.ledger.given_back(ticket)
        free = self.ledger.budget_bytes - self.ledger.memory_bytes
        return Refusal(
            f"no room for {size_bytes} bytes: {free} of {self.ledger.budget_bytes} bytes of memory are free "
            f"([headrace] xcom_memory), and {self.settings.spill} cannot take them: {error}",
            "full",
        )

    def _put(self, content: Content, ticket: int, place: Place) -> None:
        record = content.record
        self.ledger.given_back(ticket)
        self._held[record["id"]] = content
        self._urls[record["id"]] = record["url"]
        slot, size_bytes = _slot(record), int(record["bytes"])
        self._perform(self.ledger.put(record["id"], slot, size_bytes, place, time.monotonic()))

    # Getting

    def get(self, record: Record, reader: int, found: Found) -> None:
        """Finds an object, and brings back its durable copy if need be. It counts as read until it is closed."""
        place = self.ledger.opened(record["id"], reader, time.monotonic())
        if place in ("memory", "file"):
            found(self._held[record["id"]])
        elif (restore := self._restores.get(record["id"])) is not None:
            restore.waiters.append((reader, found))
        else:
            self._restore(record, reader, found)

    def _restore(self, record: Record, reader: int, found: Found) -> None:
        id, size_bytes = record["id"], int(record["bytes"])
        ticket: int = 0
        place: Place = "file"
        if storage.local_path(record["url"]) is None:  # a local copy is mapped as it is, and takes no memory
            ticket, place = self._reserved(size_bytes)
            self._trim()
        self._restores[id] = _Restore(record, ticket, [(reader, found)])
        job = {
            "do": "read", "url": record["url"], "id": id, "size": size_bytes, "place": place,
            "writer": self._writer.role,
        }  # fmt: skip
        self._reader.submit(job, None, functools.partial(self._restored, id, place), size_bytes)

    def _restored(self, id: str, place: Place, message: Message, fds: list[int]) -> None:
        restore = self._restores.pop(id)
        self.ledger.given_back(restore.ticket)
        error = error_of(message)
        if error is not None or not fds:
            for fd in fds:
                os.close(fd)
            self.ledger.copy_lost(id)
            if id not in self.ledger.entries:
                self._urls.pop(id, None)
            refusal = Refusal(error or "no descriptor came", "lost" if message.get("missing") else "unreadable")
            for _, found in restore.waiters:
                found(refusal)
            return
        self._held[id] = content = Content(restore.record, fd=fds[0], reusable=place == "memory")
        self._urls[id] = restore.record["url"]
        slot, size_bytes = _slot(restore.record), int(restore.record["bytes"])
        self.ledger.restored(id, slot, size_bytes, place, time.monotonic())
        for reader, found in restore.waiters:
            self.ledger.opened(id, reader, time.monotonic())
            found(content)

    # Giving up

    def delete(self, record: Record) -> None:
        """Nobody shall find the object any more, whether it is known here or not."""
        if record["id"] in self.ledger.entries:
            self._perform(self.ledger.deleted(record["id"], time.monotonic()))
        else:
            self._erase(record["url"])
        self.restless = True

    def close(self) -> list[str]:
        """Lets go of everything; returns the URLs of durable copies that were not made, and now never will be."""
        lost = [self._urls[id] for id in self.ledger.undurable() if self.ledger.entries[id].durable == "failed"]
        for lane in self.lanes:
            lane.close()
        for id in list(self._held):
            self._let_go(id)
        self._pool.close()
        return lost

    # What the ledger commands

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
        content = self._held[id]
        record = content.record
        info = {"id": id, "slot": record["slot"], "type": record["type"], "shape": record["shape"]}
        job = {"do": "write", "url": record["url"], "size": record["bytes"], "info": info}
        fd = None
        try:
            if content.fd is not None:
                fd = segments.reopen(content.fd, os.O_RDONLY)
            elif content.data is not None:
                job["data"] = b64encode(content.data).decode()
            self._writer.submit(job, fd, functools.partial(self._written, id), int(record["bytes"]))
        except OSError as error:  # no descriptor is left
            self._not_written(id, str(error))

    def _written(self, id: str, message: Message, fds: list[int]) -> None:
        error = error_of(message)
        if error is None:
            self.ledger.written(id)
        else:
            self._not_written(id, error)

    def _not_written(self, id: str, error: str) -> None:
        self.ledger.write_failed(id, error, time.monotonic())
        self.restless = True

    def _let_go(self, id: str) -> None:
        content = self._held.pop(id, None)
        if content is not None and content.fd is not None:
            if content.reusable:
                self._pool.give(content.fd)
            else:
                segments.let_go(content.fd)

    def _erase(self, url: str) -> None:
        self._writer.submit({"do": "erase", "url": url}, None, lambda message, fds: None)

    # Time

    @property
    def busy(self) -> bool:
        """Whether I/O processes are at work."""
        return any(lane.busy for lane in self.lanes)

    def look(self) -> bool:
        """Time has passed; returns whether something is to be done soon, without any further event."""
        now_s = time.monotonic()
        self.restless = False
        self._perform(self.ledger.ticked(now_s))
        self._pool.trim_old()
        if self.settings.ttl_s and now_s >= self._sweep_s:
            self._sweep_s = now_s + _SWEEP_EVERY_S
            runs = self.ledger.runs_used_since(now_s - self.settings.ttl_s)
            keep = [storage.run_folder(dag_id, run_id) for dag_id, run_id in runs]
            job = {"do": "sweep", "ttl_s": self.settings.ttl_s, "keep": keep}
            self._writer.submit(job, None, lambda message, fds: None)
        return self.busy or self.ledger.waits()

    def retry(self) -> None:
        """Durable copies that failed shall be tried again now."""
        self._perform(self.ledger.retried())

    # What is asked from outside

    def objects(self) -> list[dict[str, Any]]:
        """Every object that is known, with where it is; nothing of its value."""
        now_s = time.monotonic()
        found = []
        for id, entry in self.ledger.entries.items():
            content = self._held.get(id)
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
        entries = self.ledger.entries.values()
        failed = [entry for entry in entries if entry.durable == "failed"]
        return {
            "objects": len(entries),
            "memory_bytes": self.ledger.memory_bytes, "budget_bytes": self.ledger.budget_bytes,
            "spilled_bytes": sum(entry.size_bytes for entry in entries if entry.place == "file"),
            "pool_bytes": self._pool.size_bytes, "url": self.settings.url,
            "undurable": len(self.ledger.undurable()), "failed": len(failed),
            "reasons": sorted({entry.reason for entry in failed}), "jobs": sum(lane.busy for lane in self.lanes),
        }  # fmt: skip


def _slot(record: Record) -> Slot:
    dag_id, run_id, task_id, map_index, key = record["slot"]
    return Slot(str(dag_id), str(run_id), str(task_id), int(map_index), str(key))
