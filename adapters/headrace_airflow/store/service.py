"""The store service: answers clients. Single-threaded; waits for nothing but events.

A loop of its own (``python -m headrace_airflow.store_service``) or somebody else's selector drives it: ``fileno()`` is
readable when ``handle()`` should be called, which should also happen after ``timeout_s()`` seconds; a host that ends
calls ``finish()``. A host must not fork without exec: children would keep the lock and the memory.

Requests are JSON objects with ``op``; a client waits for the answer before it asks again. That is one object with
``ok`` and what stands here; if ``ok`` is false, with ``error`` (text) and its ``kind`` instead (see ``Refusal``; or
``failed``):

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
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from headrace_airflow.store import segments
from headrace_airflow.store.contents import Content, Contents, Refusal, Room
from headrace_airflow.store.errors import StoreUnreachableError
from headrace_airflow.store.home import Home
from headrace_airflow.store.lane import HelperLane
from headrace_airflow.store.settings import StoreSettings
from headrace_airflow.wire import Channel, Message, peer_uid

SMALL_BYTES: Final = 32 * 1024
"""An image up to this size rides in messages, and takes no descriptor."""

_SOON_S: Final = 1.0
_LATER_S: Final = 30.0


@dataclass(slots=True, eq=False)
class _Client:
    channel: Channel
    number: int
    room: Room | None = None
    """What the client is writing to."""
    events: int = 0


class StoreService:
    """The store of one node. Not thread-safe.

    Args:
        settings: see there.
        ends_when_idle: whether ``ended`` becomes true after ``settings.idle_s`` without a client.

    Raises:
        StoreUnreachableError: another service of this node is at work.
        ForeignStoreError: the folder is another user's.
        OSError: it cannot be made.
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
        try:
            self.home.remove_earlier()
            self._listener = self.home.listen()
        except BaseException:
            os.close(lock)
            raise
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._contents = Contents(settings)
        self._lanes: dict[HelperLane, int] = dict.fromkeys(self._contents.lanes, -1)
        """Lane → the descriptor under which it is polled."""
        self._clients: dict[int, _Client] = {}
        self._flushes: list[_Client] = []
        self._numbers = 0
        self._ending_since_s = 0.0
        self._ends_when_idle = ends_when_idle
        self._idle_since_s = self._look_s = time.monotonic()
        self._ops: dict[str, Callable[[_Client, Message], Message | None]] = {
            "reserve": self._reserve,
            "commit": self._commit,
            "get": self._get,
            "delete": self._delete,
            "list": lambda client, message: {"objects": self._contents.objects()},
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
        if self._contents.restless or time.monotonic() >= self._look_s:
            self._look()
        self._watch_lanes()
        self._answer_flushes()
        if self._ending_since_s and not self._contents.busy:
            self.ended = True

    def begin_end(self) -> None:
        """Ends once every durable copy is there, or has failed once more."""
        if not self._ending_since_s:
            self._ending_since_s = time.monotonic()
            self._look_s = 0.0
            self._contents.retry()

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
        self.home.unlink()
        for client in list(self._clients.values()):
            self._drop_client(client)
        lost = self._contents.close()
        self._poll.close()
        self._listener.close()
        os.close(self._lock_fd)
        return lost

    def status(self) -> dict[str, Any]:
        """Counts and bytes, and what goes wrong."""
        return {"pid": os.getpid(), "clients": len(self._clients), **self._contents.status()}

    def io_pids(self) -> list[int]:
        """The I/O processes, children of this one: they end by themselves."""
        return [pid for lane in self._lanes if (pid := lane.pid)]

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
            self._contents.ledger.closed(id, client.number)
        try:
            answer = self._ops[message["op"]](client, message)
        except Exception as error:  # a broken request must harm nobody else
            answer = {"error": f"{type(error).__name__}: {error}", "kind": "failed"}
        if answer is not None:
            self._send(client, answer)

    def _send(self, client: _Client, answer: Message, fd: int | None = None) -> None:
        client.channel.send({"ok": "error" not in answer, **answer}, [fd] if fd is not None else [])
        self._watch(client)

    def _send_file(self, client: _Client, answer: Message, fd: int, flags: int) -> None:
        """Answers with an open file of the client's own."""
        theirs = -1
        try:
            theirs = segments.reopen(fd, flags)
            self._send(client, answer, theirs)
        except OSError as error:  # no descriptor is left
            self._send(client, {"error": str(error), "kind": "failed"})
        finally:
            if theirs >= 0:
                os.close(theirs)

    def _watch(self, client: _Client) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if client.channel.unsent else 0)
        if events != client.events and client.channel.fileno() >= 0:
            self._poll.modify(client.channel.fileno(), events)
            client.events = events

    def _is_there(self, client: _Client) -> bool:
        return self._clients.get(client.channel.fileno()) is client

    def _drop_client(self, client: _Client) -> None:
        fd = client.channel.fileno()
        self._poll.unregister(fd)
        del self._clients[fd]
        client.channel.close()
        self._forget_room(client)
        self._contents.ledger.reader_lost(client.number)
        self._flushes = [waiting for waiting in self._flushes if waiting is not client]
        self._idle_since_s = time.monotonic()

    # Requests

    def _reserve(self, client: _Client, message: Message) -> None:
        self._forget_room(client)
        self._contents.reserve(int(message["size"]), functools.partial(self._give_room, client))

    def _give_room(self, client: _Client, room: Room | Refusal) -> None:
        if isinstance(room, Refusal):
            self._refuse(client, room)
        elif not self._is_there(client):
            self._contents.give_back(room)
        else:
            client.room = room
            self._send_file(client, {"place": room.place, "used_before": room.used_before}, room.fd, os.O_RDWR)

    def _commit(self, client: _Client, message: Message) -> Message | None:
        record = message["record"]
        if "data" in message:
            self._contents.put_small(record, b64decode(message["data"]), functools.partial(self._confirm, client))
            return None
        if client.room is None or int(record["bytes"]) != client.room.size_bytes:
            return {"error": "nothing was reserved for this", "kind": "failed"}
        room, client.room = client.room, None
        self._contents.put(record, room)
        return {}

    def _confirm(self, client: _Client, refusal: Refusal | None) -> None:
        if refusal is not None:
            self._refuse(client, refusal)
        elif self._is_there(client):
            self._send(client, {})

    def _refuse(self, client: _Client, refusal: Refusal) -> None:
        if self._is_there(client):
            self._send(client, {"error": refusal.error, "kind": refusal.kind})

    def _forget_room(self, client: _Client) -> None:
        if client.room is not None:
            self._contents.give_back(client.room)
            client.room = None

    def _get(self, client: _Client, message: Message) -> None:
        record = message["record"]
        self._contents.get(record, client.number, functools.partial(self._hand_out, client, record["id"]))

    def _hand_out(self, client: _Client, id: str, content: Content | Refusal) -> None:
        if isinstance(content, Refusal):
            self._refuse(client, content)
        elif not self._is_there(client):
            self._contents.ledger.closed(id, client.number)
        elif content.data is not None:
            self._contents.ledger.closed(id, client.number)
            self._send(client, {"data": b64encode(content.data).decode()})
        else:
            assert content.fd is not None
            self._send_file(client, {}, content.fd, os.O_RDONLY)

    def _delete(self, client: _Client, message: Message) -> Message:
        self._contents.delete(message["record"])
        return {}

    def _flush(self, client: _Client, message: Message) -> None:
        self._flushes.append(client)

    def _answer_flushes(self) -> None:
        if self._flushes and not self._contents.busy:
            waiting, self._flushes = self._flushes, []
            for client in waiting:
                self._send(client, {})

    def _end(self, client: _Client, message: Message) -> Message:
        self.begin_end()
        return {}

    # Time

    def _look(self) -> None:
        soon = self._contents.look()
        for lane in self._lanes:
            lane.look()
            self._watch_lanes()
        now_s = time.monotonic()
        self._look_s = now_s + (_SOON_S if soon or self._ending_since_s else _LATER_S)
        if self._ends_when_idle:
            self._look_s = min(self._look_s, now_s + max(_SOON_S, self.settings.idle_s / 4))
            idle = not self._clients and not self._contents.busy and not self._contents.ledger.undurable()
            if idle and now_s - self._idle_since_s >= self.settings.idle_s:
                self.begin_end()

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
