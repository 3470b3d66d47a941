"""The items of one generator task while it runs: one anonymous file that the task appends to and others read.

    word (8 bytes): where the written part ends, + 1 when nothing more will come
    at 64, and then each at a multiple of 64:  length of the chunk | number of its items | … | chunk (an image)

The word is written after the chunk that it tells of, and nothing before the end is ever changed: so who reads the word
may read up to there, without a lock. A reader that has read all waits at a doorbell, a socket that the writer rings
after every chunk; the writer never waits for a reader. All items stay: they are the task's value when it ends.

A doorbell that comes between two chunks is rung with the next one: it is taken in after the word is written, so whoever
sent it before has read the word of before, and is rung; whoever sends it later reads this word.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import uuid
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from headrace.store.kernel import write
from headrace.store.segments import ALIGNMENT
from headrace_airflow.store import image

_WORD: Final = struct.Struct("=Q")
_HEAD: Final = struct.Struct("=QQ")
_ENDED: Final = 1
_MAPPED_FROM_BYTES: Final = 1 << 16
"""A shorter chunk is read, a longer one mapped."""


class BrokenStreamError(Exception):
    """The producer of a stream is gone, and its stream has no end."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some items: how many, and the image of their pickle."""

    count: int
    image: memoryview


class Writer:
    """The producer's side. ``id`` tells this stream from every other.

    Raises:
        OSError: there is no memory left.
    """

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.fd = os.memfd_create("headrace-stream", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.fd)
        self.newcomers: Callable[[], list[socket.socket]] = list
        """Hands out doorbells of readers that have come since it was last called."""
        self._end = ALIGNMENT
        self._doorbells: list[socket.socket] = []
        self._tell(0)

    def append(self, parts: Sequence[memoryview], count: int) -> None:
        """Adds a chunk: a pickle of so many items, and its buffers."""
        sizes = [part.nbytes for part in parts]
        offsets, length = image.plan(sizes)
        start = self._end + ALIGNMENT
        write(self.fd, _HEAD.pack(length, count), self._end)
        write(self.fd, image.table(sizes), start)
        for offset, part in zip(offsets, parts, strict=True):
            write(self.fd, part, start + offset)
        self._end = _aligned(start + length)
        os.ftruncate(self.fd, self._end)
        self._tell(0)

    def end(self) -> None:
        """Nothing more will come."""
        self._tell(_ENDED)

    def _tell(self, flag: int) -> None:
        write(self.fd, _WORD.pack(self._end | flag), 0)
        self._doorbells += self.newcomers()
        for doorbell in self._doorbells:
            with suppress(OSError):  # it has not heard the last ring yet, or is gone
                doorbell.send(b"!", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


class Reader:
    """Finds the chunks of a spool in their order, and waits for those to come.

    Args:
        fd: the spool's; the reader has its own copy.
        wait: blocks until the doorbell rings, or the producer is gone: then it returns false. ``None``: it is gone.
    """

    def __init__(self, fd: int, wait: Callable[[], bool] | None = None) -> None:
        self.fd = os.dup(fd)
        weakref.finalize(self, os.close, self.fd)
        self._wait = wait
        self._found: list[tuple[int, int, int]] = []
        """Where each chunk is: offset, length, number of items."""
        self._at = ALIGNMENT
        self._ended = False

    def chunk(self, number: int) -> Chunk | None:
        """The chunk, waited for; ``None``: the stream has ended before it.

        Raises:
            BrokenStreamError: the producer is gone, and the stream has no end.
        """
        while number >= len(self._found) and not self._look():
            if self._ended:
                return None
            if self._wait is None:
                raise BrokenStreamError("the producer of a stream has ended before its stream")
            if not self._wait():
                self._wait = None  # what it wrote last is still to be looked at
        offset, length, count = self._found[number]
        return Chunk(count, _view(self.fd, offset, length))

    def items_so_far(self) -> int:
        """How many items have been written."""
        self._look()
        return sum(count for _, _, count in self._found)

    def _look(self) -> bool:
        """Takes in what has been written since; whether there was anything."""
        (word,) = _WORD.unpack(os.pread(self.fd, _WORD.size, 0))
        end = word & ~_ENDED
        self._ended = bool(word & _ENDED)
        before = self._at
        while self._at < end:
            length, count = _HEAD.unpack(os.pread(self.fd, _HEAD.size, self._at))
            start = self._at + ALIGNMENT
            self._found.append((start, length, count))
            self._at = _aligned(start + length)
        return self._at > before


def hear(doorbell: socket.socket) -> Callable[[], bool]:
    """A reader's way to wait: returns when it rang once or more since the last time."""
    return lambda: bool(doorbell.recv(4096))


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _view(fd: int, offset: int, length: int) -> memoryview:
    """Private, writable memory with this part of the file."""
    if length < _MAPPED_FROM_BYTES:
        return memoryview(bytearray(os.pread(fd, length, offset)))
    start = offset // mmap.PAGESIZE * mmap.PAGESIZE
    mapped = mmap.mmap(fd, offset - start + length, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE, offset=start)
    return memoryview(mapped)[offset - start :]
