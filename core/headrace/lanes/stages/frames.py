"""What the owner of a stage and its process say to each other: pickled tuples over a socketpair.

::

    owner                                                    stage process
    CALL ─────────────────────────────────────────────────►  unpickle, call
         ◄───────────── MORE (input), at most one ahead ───
    BATCH (call, input, items, the end?) ─────────────────►  read by the call
         ◄───── STREAM, then BATCH (items) ... ENDED ──────  its generator
         ◄───── or VALUE; or FAILED; or UNFIT ─────────────  its result
    STOP ─────────────────────────────────────────────────►  closes its generator, then ENDED

A side that does not receive makes the other one wait: sending blocks.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from typing import Any, Final

from headrace.store.pickling import Packed, pack, unpack

CALL, BATCH, STOP = range(3)  # BATCH goes both ways
HELLO, MORE, STREAM, VALUE, ENDED, FAILED, UNFIT = range(10, 17)

_HEADER: Final = struct.Struct("<I")
_SIZE: Final = struct.Struct("<Q")


class Frames:
    """One end. Any thread may send; one receives."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self.socket = sock
        self._sending = threading.Lock()

    def send(self, *message: Any) -> None:
        """Sends a message. Blocks while the other side is busy.

        Raises:
            UnpicklableError: nothing was sent.
            OSError: the other side is gone.
        """
        self.send_packed(pack(message))

    def send_packed(self, packed: Packed) -> None:
        """Sends a message that is pickled already."""
        parts: list[Any] = [packed.data, *packed.buffers]
        header = _HEADER.pack(len(parts)) + b"".join([_SIZE.pack(len(part)) for part in parts])
        with self._sending:
            if len(parts) == 1:
                self.socket.sendall(header + packed.data)
            else:
                self.socket.sendall(header)
                for part in parts:
                    self.socket.sendall(part)

    def readable(self, timeout_s: float) -> bool:
        """Whether a message, or the end, comes within this time."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000.0))

    def receive(self) -> Any:
        """The next message. Blocks.

        Raises:
            EOFError: the other side is gone.
        """
        (count,) = _HEADER.unpack(self._read(_HEADER.size))
        sizes = struct.unpack(f"<{count}Q", self._read(count * _SIZE.size))
        data, *buffers = [self._read(size) for size in sizes]
        return unpack(bytes(data), buffers)

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view, done = memoryview(data), 0
        while done < size:
            try:
                got = self.socket.recv_into(view[done:])
            except OSError:
                got = 0
            if not got:
                raise EOFError
            done += got
        return data

    def close(self) -> None:
        """The other side sees the end; a thread that receives here does too."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()


class Input:
    """Stands in a call's arguments for the stream number ``number``."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[type[Input], tuple[int]]:
        return Input, (self.number,)
