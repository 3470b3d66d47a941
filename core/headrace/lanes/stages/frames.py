"""What the owner of a stage and its process say to each other: pickled tuples over a socketpair.

::

    owner                                                    stage process
    CALL ─────────────────────────────────────────────────►  unpickle, call
         ◄── MORE (input, progress), at most one ahead ────
    BATCH (call, input, items, end) ──────────────────────►  read by the call
         ◄── STREAM, then BATCH (items, progress), ENDED ──  its generator
    TAKEN (bytes, ranges) ────────────────────────────────►  so much of large items may be ahead again
         ◄───── or VALUE; or FAILED; or UNFIT ─────────────  its result
    STOP ─────────────────────────────────────────────────►  closes its generator, then ENDED

Large items are not in the messages: a :class:`Large` stands for each, and the item is in shared memory. Whose memory
that is, each side shows the other once (ARENA; ATTACH and, when that process is gone, DETACH), with its descriptor.
Every message of a process begins with the ranges that it has ceased to read (CLOSED says nothing else). What a call
warns of or logs comes as SAID, at once; how far a resumable one has come as CAME, if nothing else says it. A side that
does not receive makes the other one wait: sending blocks. ``end`` is None, True, or a failure (processes/failures.py).
"""

from __future__ import annotations

import array
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from headrace.errors import UnpicklableError
from headrace.lanes.processes.parcels import Parcel
from headrace.store.pickling import Packed, pack, unpack

CALL, BATCH, STOP, TAKEN, ATTACH, DETACH = range(6)  # BATCH goes both ways
HELLO, MORE, STREAM, VALUE, ENDED, FAILED, UNFIT, ARENA, CLOSED, SAID, CAME = range(10, 21)

LARGE_BYTES: Final = 256 * 1024
"""From this size an item goes through shared memory by itself; below, two copies through the socket cost less."""
SMALL_BYTES: Final = 32 * 1024
"""What turns out not to be larger goes in the message after all."""

_HEADER: Final = struct.Struct("<I")
_SIZE: Final = struct.Struct("<Q")
_DESCRIPTOR_BYTES: Final = socket.CMSG_SPACE(array.array("i").itemsize)


class Frames:
    """One end. Any thread may send; one receives."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self.socket = sock
        self.descriptors: deque[int] = deque()
        """Those that came with the messages, for whoever receives to take over."""
        self._sending = threading.Lock()

    def send(self, *message: Any, descriptors: Sequence[int] = ()) -> None:
        """Sends a message. Blocks while the other side is busy.

        Args:
            descriptors: at most one goes with a message.

        Raises:
            UnpicklableError: nothing was sent.
            OSError: the other side is gone.
        """
        self._send(pack(message), descriptors)

    def _send(self, packed: Packed, descriptors: Sequence[int]) -> None:
        parts: list[Any] = [packed.data, *packed.buffers]
        header = _HEADER.pack(len(parts)) + b"".join([_SIZE.pack(len(part)) for part in parts])
        with self._sending:
            if descriptors:
                sent = socket.send_fds(self.socket, [header], descriptors)
                self.socket.sendall(header[sent:] + packed.data)
            elif len(parts) == 1:
                self.socket.sendall(header + packed.data)
            else:
                self.socket.sendall(header)
                for part in parts:
                    self.socket.sendall(part)

    def readable(self, timeout_s: float, unless: int = -1) -> bool:
        """Whether a message, or the end, comes within this time, and before this descriptor becomes readable."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        if unless >= 0:
            poll.register(unless, select.POLLIN)
        return self.socket.fileno() in [fd for fd, _ in poll.poll(timeout_s * 1000.0)]

    def receive(self) -> Any:
        """The next message. Blocks.

        Raises:
            EOFError: the other side is gone.
            UnpicklableError: the message came, and something in it cannot be unpickled.
        """
        (count,) = _HEADER.unpack(self._read(_HEADER.size, descriptors=True))
        sizes = struct.unpack(f"<{count}Q", self._read(count * _SIZE.size))
        data, *buffers = [self._read(size) for size in sizes]
        try:
            return unpack(bytes(data), buffers)
        except Exception as error:  # unpickling runs users' code, which may raise anything
            raise UnpicklableError(f"something cannot be unpickled: {error!r}") from error

    def _read(self, size: int, descriptors: bool = False) -> bytearray:
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            try:
                got = self._receive_with_descriptors(view[done:]) if descriptors else self.socket.recv_into(view[done:])
            except OSError:
                got = 0
            if not got:
                raise EOFError
            done += got
        return data

    def _receive_with_descriptors(self, view: memoryview) -> int:
        got, ancillary, _, _ = self.socket.recvmsg_into([view], _DESCRIPTOR_BYTES, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self.descriptors.extend(array.array("i", data))
        return got

    def close(self) -> None:
        """The other side sees the end; a thread that receives here does too."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()


Progress: TypeAlias = tuple[int, int]
"""How far a generator that reads one stream has come, all that it has yielded before being on its way to the owner: for
how many items it has asked, the one that it is at included; and how many it has yielded for that one. Plain, because
one is made for every item."""
BEGINNING: Final[Progress] = (0, 0)


class Input:
    """Stands in a call's arguments for the stream number ``number``."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[type[Input], tuple[int]]:
        return Input, (self.number,)


class Large:
    """Stands in a message for an item whose ``parcel`` is probably in shared memory."""

    __slots__ = ("nbytes", "parcel")

    def __init__(self, parcel: Parcel, nbytes: int) -> None:
        self.parcel = parcel
        self.nbytes = nbytes

    def __reduce__(self) -> tuple[type[Large], tuple[Parcel, int]]:
        return Large, (self.parcel, self.nbytes)
