"""The I/O process of the service: makes, reads and erases durable copies, one after another.

    python -m headrace_airflow.store.helper FD ROLE < settings

It speaks over one socketpair (descriptor FD). Jobs it has received are its own: when the service dies, even by SIGKILL,
it finishes them before it ends, so a value whose memory only this process still holds is not lost. While it lives, a
writer holds a lock on a file in ``writing/``; a reader that misses a copy waits for writers of earlier services.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
import time
from base64 import b64decode
from collections import deque
from pathlib import Path
from typing import Final

from headrace_airflow.store import segments, storage
from headrace_airflow.store.home import Home
from headrace_airflow.store.settings import StoreSettings
from headrace_airflow.wire import Channel, Message

_NICE: Final = 10
_WAIT_FOR_WRITERS_S: Final = 300.0
_LOOK_EVERY_S: Final = 0.05


class Helper:
    """Carries out jobs; see :mod:`headrace_airflow.store.lane` for what they are."""

    def __init__(self, channel: Channel, settings: StoreSettings, writing: Path) -> None:
        self._channel, self._settings, self._writing = channel, settings, writing
        self._jobs: deque[tuple[Message, list[int]]] = deque()

    def run(self) -> None:
        """Returns when the service is gone and every job is done."""
        while self._jobs or not self._channel.closed:
            self._receive(wait=not self._jobs)
            if self._jobs:
                message, fds = self._jobs.popleft()
                self._answer(message, fds)

    def _receive(self, *, wait: bool) -> None:
        if self._channel.closed:
            return
        poll = select.poll()
        poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._channel.unsent else 0))
        if poll.poll(None if wait else 0):
            self._channel.flush()
            self._jobs.extend(self._channel.receive())

    def _answer(self, message: Message, fds: list[int]) -> None:
        given: list[int] = []
        try:
            answer = self._perform(message, fds, given)
        except Exception as error:  # a file system of fsspec's may raise anything: the service is told
            missing = isinstance(error, FileNotFoundError)
            answer = {"error": f"{type(error).__name__}: {error}", "missing": missing}
        _close(fds)  # before the answer: then nobody but the service has the segment any more
        self._channel.send({"job": message["job"], **answer}, given)
        _close(given)
        if self._channel.closed:  # the service is gone, but what it had sent before can still be read
            self._channel.closed = False
            self._jobs.extend(self._channel.receive())

    def _perform(self, message: Message, fds: list[int], given: list[int]) -> Message:
        options = self._settings.storage_options
        if message["do"] == "write":
            source: int | bytes = b64decode(message["data"]) if "data" in message else fds[0]
            storage.write(message["url"], options, source, message["size"], message["info"])
            return {}
        if message["do"] == "erase":
            storage.erase(message["url"], options)
            return {}
        if message["do"] == "sweep":
            storage.sweep(self._settings.url, options, message["ttl_s"], message["keep"])
            return {}
        if message["do"] == "spill":
            given.append(segments.spill_file(self._settings.spill, message["size"]))
            os.pwrite(given[0], b64decode(message.get("data", "")), 0)
            return {}
        return self._read(message, given)

    def _read(self, message: Message, given: list[int]) -> Message:
        url, id = message["url"], message["id"]
        if storage.local_path(url) is None:
            room = message["size"] + storage.MOST_EXTRA_BYTES
            spilled = message["place"] == "file"
            given.append(segments.spill_file(self._settings.spill, room) if spilled else segments.create(room))
        target = given[0] if given else None
        try:
            fd = storage.read(url, self._settings.storage_options, id, target)
        except FileNotFoundError:
            if not self._earlier_writers_end(message["writer"]):
                raise
            fd = storage.read(url, self._settings.storage_options, id, target)
        if fd is not None:
            given.append(fd)
        return {}

    def _earlier_writers_end(self, current: str) -> bool:
        """Waits for writers that an earlier service left at work; says whether there was any."""
        found = False
        end_s = time.monotonic() + _WAIT_FOR_WRITERS_S
        for path in list(self._writing.iterdir()) if self._writing.is_dir() else []:
            if path.name == current:
                continue
            found = True
            with contextlib.suppress(FileNotFoundError), open(path) as file:
                while not _try_lock(file.fileno()) and time.monotonic() < end_s:
                    time.sleep(_LOOK_EVERY_S)  # a lock on a file cannot be polled
                path.unlink(missing_ok=True)
        return found


def hold_writing(folder: Path, name: str) -> int:
    """Shows others that a writer is at work, for as long as this process lives."""
    folder.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main(arguments: list[str]) -> None:
    fd, role = int(arguments[0]), arguments[1]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end comes with the end of the socket, once the jobs are done
    settings = StoreSettings.from_json(sys.stdin.read())
    writing = Home(settings.home).writing
    if role != "reader":
        os.nice(_NICE)
        hold_writing(writing, role)
    channel = Channel(socket.socket(fileno=fd))
    Helper(channel, settings, writing).run()
    channel.close()
    if role != "reader":
        (writing / role).unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1:])
