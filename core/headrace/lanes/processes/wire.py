"""What owner and worker say to each other, and the channel it goes through.

::

    owner                                                              worker
    [op, op, ...] ── marshal ──► header | body ──► socketpair ──► header | body ── marshal ──► [op, op, ...]
                                        └─ descriptors (SCM_RIGHTS) travel with the frame's first bytes

An *op* is a tuple that begins with one of the codes below. Frames are marshalled, not pickled: they hold nothing but
ints, floats, strings, bytes and tuples, marshal is twice as fast at these, and it calls nobody's code. What users made
is inside as *parcels* (parcels.py), which are unpickled later, one by one, where a failure can be laid to a task.

The socketpair is inherited: no path, no listener, nobody else who could connect.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from headrace.lanes.processes.parcels import Parcel

Op: TypeAlias = tuple[Any, ...]

Record: TypeAlias = tuple[int, int, int, tuple[Any, ...] | None, Parcel | None, tuple[Any, ...], bool]
"""A task to run: id, base of its job, function's number, args if all are plain, else a parcel of (args, kwargs), holes,
whether its result is wanted by the owner."""

# Owner to worker.
SETUP: Final = 0  # (sys.path, working directory, small_bytes)
FUNCTION: Final = 1  # (number, parcel)
FORGET: Final = 2  # (numbers of functions)
VALUE: Final = 3  # (task, plain?, value or parcel)
RUN: Final = 4  # (records)
PUBLISH: Final = 5  # (task)
DROP: Final = 6  # (tasks)
REVOKE: Final = 7  # (tasks)
STOP: Final = 8  # ()
ATTACH: Final = 9  # (place) and its arena's descriptor
DETACH: Final = 10  # (place)
FREE: Final = 11  # (offset): nobody reads this range of the worker's arena any more
PREIMPORT: Final = 12  # (module names): import them, then say hello
PLACE: Final = 13  # (sys.path, working directory): both have changed in the owner
FOLLOW: Final = 14  # (states): what of the owner's companions has changed, see companions.py
ENVIRON: Final = 15  # (variables): what of the owner's environment has changed, see surroundings.py
RELOAD: Final = 16  # (module names): the owner has loaded them again

# Worker to owner.
HELLO: Final = 32  # ()
RAN: Final = 33  # (span, how, value): see NOTHING, PLAIN, PARCELLED
FAILED: Final = 34  # (task, failure, began?): see failures.py; one that did not begin could not be opened
UNPICKLABLE: Final = 35  # (task, message, traceback, must stay?)
PUBLISHED: Final = 36  # (task, parcel, does the worker read it from there itself?)
REVOKED: Final = 37  # (tasks)
CLOSED: Final = 38  # (segments (place, offset) of which one map is gone)
ARENA: Final = 39  # () and the descriptor of the worker's arena
LEAVING: Final = 40  # (): its queue is done and it was told to stop
SAID: Final = 41  # (task, companion, bytes): see companions.py
STREAMS: Final = 42  # (task): its result would be a stream; it has not been begun

# How a result travels with RAN.
NOTHING: Final = 0  # it stays at the worker
PLAIN: Final = 1  # as itself
PARCELLED: Final = 2  # pickled

PLAIN_TYPES: Final = frozenset({int, float, bool, type(None), complex})
"""Types that travel unpickled; exactly these, because subclasses would lose their class."""

_HEADER: Final = struct.Struct("<QI")
_MARSHAL_VERSION: Final = 2  # from 3 on marshal looks for shared objects, which costs half as much again
_CHUNK: Final = 1 << 16
_MAX_DESCRIPTORS: Final = 32  # with one byte; of more than 253 Linux takes none
_DESCRIPTOR_SPACE: Final = socket.CMSG_SPACE(_MAX_DESCRIPTORS * struct.calcsize("i"))


class Channel:
    """One end of a socketpair that carries frames. Sending is thread-safe, receiving is for one thread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._lock = threading.Lock()
        self._backlog: deque[tuple[memoryview, tuple[int, ...] | list[int]]] = deque()
        self._received = bytearray()
        self._descriptors: deque[int] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, ops: list[Op], descriptors: tuple[int, ...] | list[int] = ()) -> bool:
        """Sends a frame, or keeps what the socket does not take for :meth:`pump`.

        Args:
            ops: what to say.
            descriptors: sent along as duplicates; the caller may close its own when everything has been sent. Any
                number, one for an op.

        Returns:
            Whether everything has been sent. A broken connection swallows everything: its end is seen by the reader.
        """
        body = marshal.dumps(ops, _MARSHAL_VERSION)
        frame = memoryview(_HEADER.pack(len(body), len(descriptors)) + body)
        with self._lock:
            while len(descriptors) > _MAX_DESCRIPTORS:  # an op takes more than a byte: the frame is long enough
                self._backlog.append((frame[:1], descriptors[:_MAX_DESCRIPTORS]))
                frame, descriptors = frame[1:], descriptors[_MAX_DESCRIPTORS:]
            self._backlog.append((frame, descriptors))
            return self._pump()

    def pump(self) -> bool:
        """Sends what was kept; returns whether nothing is left."""
        with self._lock:
            return self._pump()

    def send_all(self, ops: list[Op], descriptors: tuple[int, ...] | list[int] = ()) -> None:
        """Sends a frame and waits until the socket has taken all of it."""
        sent = self.send(ops, descriptors)
        while not sent:
            poll = select.poll()
            poll.register(self._socket.fileno(), select.POLLOUT)
            poll.poll()
            sent = self.pump()

    def _pump(self) -> bool:
        backlog = self._backlog
        while backlog:
            frame, descriptors = backlog[0]
            try:
                if descriptors:
                    packed = struct.pack(f"{len(descriptors)}i", *descriptors)
                    sent = self._socket.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)])
                else:
                    sent = self._socket.send(frame)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS):
                    return False
                backlog.clear()
                return True
            if sent == len(frame):
                backlog.popleft()
            else:
                backlog[0] = (frame[sent:], ())
        return True

    def receive(self) -> tuple[list[tuple[Op, list[int]]], bool]:
        """Reads what is there.

        Returns:
            The ops of every complete frame, in order, each with the list of its frame's descriptors, from which an op
            that carries one takes the first (it is the receiver's to close); and whether the other side is gone.

        Raises:
            OSError: this process has no room for a descriptor that came, which is lost.
        """
        ended = self._read()
        return list(self._frames()), ended

    def _read(self) -> bool:
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(_CHUNK, _DESCRIPTOR_SPACE, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return False
            except OSError:
                return True
            for level, kind, packed in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    self._descriptors.extend(struct.unpack(f"{len(packed) // 4}i", packed))
            if flags & socket.MSG_CTRUNC:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if not data:
                return True
            self._received += data
            if len(data) < _CHUNK and self._complete():
                return False

    def _complete(self) -> bool:
        """Whether a frame can be handed out: then another look at the socket, a system call, can wait."""
        received = self._received
        return len(received) >= _HEADER.size and len(received) >= _HEADER.size + _HEADER.unpack_from(received)[0]

    def _frames(self) -> Iterable[tuple[Op, list[int]]]:
        received = self._received
        start = 0
        while len(received) - start >= _HEADER.size:
            length, count = _HEADER.unpack_from(received, start)
            end = start + _HEADER.size + length
            if len(received) < end:
                break
            descriptors = [self._descriptors.popleft() for _ in range(count)]
            with memoryview(received) as view:
                ops = marshal.loads(view[start + _HEADER.size : end])
            for op in ops:
                yield op, descriptors
            start = end
        del received[:start]

    def close(self) -> None:
        """Closes the socket and every descriptor that came and was not handed out. May be repeated."""
        self._socket.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())


def is_plain(args: Iterable[Any]) -> bool:
    """Whether marshal may carry all of these as they are."""
    for arg in args:
        kind = type(arg)
        if kind in PLAIN_TYPES:
            if arg != arg:  # a NaN may have to stay the very object that it is: see store/nans.py
                return False
        elif not ((kind is str or kind is bytes) and len(arg) <= 1024):
            return False
    return True
