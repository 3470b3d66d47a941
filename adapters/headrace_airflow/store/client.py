"""What tasks call: puts values into the node's store and reads them from it. Thread-safe; a forked child has its own.

A service is found, or started on first need. If it goes away during a request, the request is made again, from the
start, to a new one: three times at most. A user who may not enter the service's folder writes and reads durable copies
directly: slower, but right. Every call blocks until it is answered.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import subprocess
import sys
import threading
import uuid
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from headrace.store.pickling import Packed
from headrace.store.segments import Atlas, Reading
from headrace_airflow.store import image, segments, storage
from headrace_airflow.store.errors import LostValueError, StoreFullError, StoreUnreachableError
from headrace_airflow.store.home import Home
from headrace_airflow.store.ledger import Slot
from headrace_airflow.store.service import SMALL_BYTES
from headrace_airflow.store.settings import StoreSettings
from headrace_airflow.wire import Channel, Message

T = TypeVar("T")

Record = dict[str, Any]
"""What a reference says of a value: ``id``, ``slot``, ``bytes``, ``type``, ``shape``, ``url``."""

_START_WITHIN_S: Final = 60.0
_TRIES: Final = 3


class _Gone(Exception):
    """The service went away in the middle."""


class StoreClient:
    """A connection to the node's service, made at the first request.

    Args:
        settings: see there.
        starts: whether a service may be started if there is none.
    """

    def __init__(self, settings: StoreSettings, *, starts: bool = True) -> None:
        self.settings = settings
        self._starts = starts
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._pid = os.getpid()
        self._atlas = Atlas()
        self._closed: deque[str] = deque()
        self._maps = 0
        self._inherited: list[Channel] = []
        """The parent's connections. They stay open, unused: that tells the service that its maps are alive here."""

    def put(self, slot: Slot, packed: Packed, kind: str, shape: str) -> Record:
        """Stores a pickled value; returns when the store has it, before there is a durable copy.

        Raises:
            StoreFullError: neither memory nor disk has room.
            StoreUnreachableError: there is no service and none can be started.
        """
        parts = [memoryview(packed.data), *packed.buffers]
        _, size = image.plan([part.nbytes for part in parts])
        id = uuid.uuid4().hex
        record = {
            "id": id, "slot": list(slot), "bytes": size, "type": kind, "shape": shape,
            "url": storage.url_of(self.settings.url, slot, id),
        }  # fmt: skip
        store = self._put_small if size <= SMALL_BYTES else self._put_large
        try:
            self._insist(lambda: store(record, parts, size))
        except PermissionError:
            self._put_directly(record, parts, size)
        return record

    def get(self, record: Record) -> list[memoryview]:
        """The parts of a value, in private, writable memory: the pickle first, then its buffers.

        Raises:
            LostValueError: it is neither in the store nor is there a durable copy, or that is damaged.
            StoreUnreachableError: there is no service and none can be started.
        """
        record = {**record, "url": self._trusted_url(record)}
        try:
            answer, fd = self._insist(lambda: self._ask({"op": "get", "record": record}))
        except PermissionError:
            return self._get_directly(record)
        if fd is None:
            return image.split(memoryview(bytearray(b64decode(answer["data"]))))
        return self._map(record, fd)

    def delete(self, record: Record) -> None:
        """Gives a value up, wherever it is. If no service is at work none is started."""
        record = {**record, "url": self._trusted_url(record)}
        if self._ask_if_there({"op": "delete", "record": record}) is None:
            storage.erase(record["url"], self.settings.storage_options)

    def ask(self, op: str) -> Message | None:
        """Asks the service for its ``list`` or ``status``, or to ``flush`` or ``end``; ``None`` if there is none."""
        return self._ask_if_there({"op": op})

    def close(self) -> None:
        """Ends the connection. Values that were read stay readable."""
        with self._lock:
            self._hang_up()
            self._atlas.close()

    # Putting and getting

    def _insist(self, attempt: Callable[[], T]) -> T:
        """What an attempt gives, which is made anew if the service goes away in the middle."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(_Gone):
                return attempt()
        try:
            return attempt()
        except _Gone as error:
            raise StoreUnreachableError(f"the store service went away {_TRIES} times: {error}") from error

    def _put_small(self, record: Record, parts: Sequence[memoryview], size: int) -> None:
        self._ask({"op": "commit", "record": record, "data": b64encode(_whole(parts, size)).decode()})

    def _put_large(self, record: Record, parts: Sequence[memoryview], size: int) -> None:
        with self._guard():
            answer, fd = self._ask_locked({"op": "reserve", "size": size}, self._starts)
            assert fd is not None
            try:
                segments.fill(fd, parts, used_before=answer["used_before"])
            except OSError as error:
                self._hang_up()  # that gives the reservation back
                raise StoreFullError(f"writing {size} bytes into the store ({answer['place']}): {error}") from error
            finally:
                os.close(fd)
            self._ask_locked({"op": "commit", "record": record}, starts=False)

    def _map(self, record: Record, fd: int) -> list[memoryview]:
        length = int(record["bytes"])
        with self._guard():
            self._maps += 1
            place = self._maps
        size = os.fstat(fd).st_size
        self._atlas.attach(place, fd)
        try:
            if size < length:
                raise image.BadImageError(f"it has {size} of {length} bytes")
            whole = min(size, -(-length // mmap.PAGESIZE) * mmap.PAGESIZE)
            report = functools.partial(self._closed.append, record["id"])
            (view,) = self._atlas.map(place, 0, whole, [whole], Reading(report))
            return image.split(view)
        except image.BadImageError as error:
            raise LostValueError(_lost(record, str(error))) from error
        finally:
            self._atlas.detach(place)

    def _put_directly(self, record: Record, parts: Sequence[memoryview], size: int) -> None:
        info = {key: record[key] for key in ("id", "slot", "type", "shape")}
        fd = segments.create(size)
        try:
            segments.fill(fd, parts, used_before=False)
            storage.write(record["url"], self.settings.storage_options, fd, size, info)
        finally:
            os.close(fd)

    def _get_directly(self, record: Record) -> list[memoryview]:
        local = storage.local_path(record["url"]) is not None
        target = None if local else segments.create(int(record["bytes"]) + storage.MOST_EXTRA_BYTES)
        try:
            fd = storage.read(record["url"], self.settings.storage_options, record["id"], target)
        except BaseException as error:
            if target is not None:
                os.close(target)
            if isinstance(error, FileNotFoundError):
                raise LostValueError(_lost(record, "there is no durable copy")) from error
            if isinstance(error, image.BadImageError):
                raise LostValueError(_lost(record, f"the durable copy is damaged: {error}")) from error
            raise
        found = target if fd is None else fd
        assert found is not None
        return self._map(record, found)

    def _trusted_url(self, record: Record) -> str:
        """The URL in a reference is followed only into places that are configured: what is there gets unpickled."""
        url = str(record["url"])
        for root in (self.settings.url, *self.settings.former_urls):
            if url.startswith(root.rstrip("/") + "/") and "/../" not in url:
                return url
        raise LostValueError(
            _lost(record, f"it points to {url}, which is not under [headrace] xcom_path = {self.settings.url}; if that "
                  "was moved, name the earlier place in xcom_former_paths")
        )  # fmt: skip

    # Talking

    def _guard(self) -> threading.Lock:
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()
            self._closed.clear()
            if self._channel is not None:
                self._inherited.append(self._channel)
                self._channel = None
        return self._lock

    def _ask(self, message: Message, starts: bool | None = None) -> tuple[Message, int | None]:
        with self._guard():
            return self._ask_locked(message, self._starts if starts is None else starts)

    def _ask_if_there(self, message: Message) -> Message | None:
        for _ in range(2):  # the first attempt may find that the service of before is gone
            try:
                return self._ask(message, starts=False)[0]
            except PermissionError:
                return None
            except _Gone:
                continue
        return None

    def _ask_locked(self, message: Message, starts: bool) -> tuple[Message, int | None]:
        channel = self._connected(starts)
        closed = []
        while self._closed:
            closed.append(self._closed.popleft())
        try:
            channel.send({**message, "closed": closed} if closed else message)
            found = channel.wait()
        except BaseException:  # a timeout's signal, for example: the answer must not be taken for the next request's
            self._hang_up()
            raise
        if found is None:
            self._hang_up()
            raise _Gone("it ended during a request")
        answer, fds = found
        if answer["ok"]:
            return answer, fds[0] if fds else None
        raise _error(message.get("record"), answer)

    def _connected(self, starts: bool) -> Channel:
        if self._channel is not None and self._channel.closed:
            self._hang_up()
        if self._channel is None:
            home = Home(self.settings.home)
            sock = home.connect()
            if sock is None and starts:
                start_service(self.settings)
                sock = home.connect()
            if sock is None:
                raise _Gone("there is none")
            self._channel = Channel(sock)
        return self._channel

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def start_service(settings: StoreSettings) -> None:
    """Starts a service of its own, detached from this process; returns when one can be connected to.

    Raises:
        StoreUnreachableError: it did not come up.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW__", "_AIRFLOW"))}
    command = [sys.executable, "-m", "headrace_airflow.store_service"]
    try:
        done = subprocess.run(
            command, input=settings.to_json().encode(), capture_output=True, timeout=_START_WITHIN_S, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise StoreUnreachableError(f"the store service did not come up within {_START_WITHIN_S:.0f} s") from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        raise StoreUnreachableError(f"the store service did not come up: {reason[-2000:]}")


def _whole(parts: Sequence[memoryview], size: int) -> bytes:
    sizes = [part.nbytes for part in parts]
    memory = bytearray(size)
    table = image.table(sizes)
    memory[: len(table)] = table
    for offset, part in zip(image.plan(sizes)[0], parts, strict=True):
        memory[offset : offset + part.nbytes] = part
    return bytes(memory)


def _error(record: Record | None, answer: Message) -> Exception:
    text = str(answer["error"])
    if answer["kind"] == "full":
        return StoreFullError(text)
    if record is not None and answer["kind"] == "lost":
        return LostValueError(_lost(record, "it is not in memory, and there is no durable copy"))
    if record is not None and answer["kind"] == "unreadable":
        return LostValueError(_lost(record, f"it is not in memory, and its durable copy cannot be read: {text}"))
    return StoreUnreachableError(f"the store service refused: {text}")


def _lost(record: Record, why: str) -> str:
    dag_id, run_id, task_id, map_index, key = record["slot"]
    mapped = f" (map index {map_index})" if map_index >= 0 else ""
    return (
        f"the value of XCom {key!r} of task {task_id!r}{mapped} in run {run_id!r} of DAG {dag_id!r} is lost: {why}. "
        f"Clear task {task_id!r}{mapped} of that run, so that it makes the value again. The copy would be "
        f"{record['url']}"
    )
