"""Messages between the processes of a node: JSON objects in frames, with descriptors, over AF_UNIX stream sockets.

    frame = length (4 bytes) | number of descriptors (1 byte) | JSON

Nothing is ever unpickled. The descriptors of a frame travel with its first byte, so they are there before its end.
A channel never blocks unless asked to: what the socket does not take waits here, and ``unsent`` says so.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

Message = dict[str, Any]

_HEAD: Final = struct.Struct("!IB")
_READ_BYTES: Final = 1 << 16
_MOST_FDS: Final = 8
MOST_BYTES: Final = 1 << 28
"""A frame larger than this is a broken or hostile peer."""


class Channel:
    """One end of a connection; not thread-safe; owns its socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._read = bytearray()
        self._fds: deque[int] = deque()
        self._early: list[tuple[Message, list[int]]] = []
        """What came in together with the message that somebody waited for."""
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self.closed = False
        """The peer is gone, or broke the protocol; what it sent before was still handed out."""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def unsent(self) -> int:
        """How many messages wait for ``flush``, to be called when the socket takes more."""
        return len(self._unsent)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Sends, or keeps for ``flush``, a message. The descriptors are copied: the caller's remain the caller's."""
        if self.closed:
            return
        body = json.dumps(message, separators=(",", ":")).encode()
        frame = memoryview(_HEAD.pack(len(body), len(fds)) + body)
        self._unsent.append((frame, [os.dup(fd) for fd in fds]))
        self.flush()

    def flush(self) -> None:
        """Sends what the socket takes."""
        while self._unsent:
            frame, fds = self._unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self._socket.sendmsg([frame], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:
                self._drop_unsent()
                self.closed = True
                return
            _close(fds)
            if sent == len(frame):
                self._unsent.popleft()
            else:
                self._unsent[0] = (frame[sent:], [])

    def receive(self) -> list[tuple[Message, list[int]]]:
        """What has come in completely, without waiting; the descriptors are the caller's to close."""
        while not self.closed:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(
                    _READ_BYTES, socket.CMSG_SPACE(4 * _MOST_FDS), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                break
            except OSError:
                data, ancillary = b"", []
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                    self._fds.extend(fds)
            if not data:
                self.closed = True
            self._read += data
        return self._complete()

    def _complete(self) -> list[tuple[Message, list[int]]]:
        found, self._early = self._early, []
        while len(self._read) >= _HEAD.size:
            length, count = _HEAD.unpack_from(self._read)
            if length > MOST_BYTES or count > _MOST_FDS:
                self.closed = True
                self._read.clear()
                break
            end = _HEAD.size + length
            if len(self._read) < end:
                break
            message = json.loads(bytes(self._read[_HEAD.size : end]))
            del self._read[:end]
            found.append((message, [self._fds.popleft() for _ in range(min(count, len(self._fds)))]))
        return found

    def wait(self, timeout_s: float | None = None) -> tuple[Message, list[int]] | None:
        """Blocks for one message; others are left to ``receive``.

        ``None``: the peer is gone, or has sent nothing for ``timeout_s``.
        """
        while True:
            if found := self.receive():
                first, *self._early = found
                return first
            if self.closed:
                return None
            poll = select.poll()
            poll.register(self, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            if not poll.poll(None if timeout_s is None else timeout_s * 1000):
                return None
            self.flush()

    def drain(self, timeout_s: float) -> None:
        """Blocks until all is sent, the peer is gone, or has taken nothing for ``timeout_s``."""
        while self._unsent and not self.closed:
            poll = select.poll()
            poll.register(self, select.POLLOUT)
            if not poll.poll(timeout_s * 1000):
                return
            self.flush()

    def close(self) -> None:
        """Closes the socket and every descriptor that was not handed out."""
        self.closed = True
        self._drop_unsent()
        _close([*self._fds, *(fd for _, fds in self._early for fd in fds)])
        self._fds.clear()
        self._early.clear()
        self._socket.close()

    def _drop_unsent(self) -> None:
        for _, fds in self._unsent:
            _close(fds)
        self._unsent.clear()


def pair() -> tuple[Channel, socket.socket]:
    """A channel, and the socket at its other end, which another process shall have."""
    ours, theirs = socket.socketpair()
    return Channel(ours), theirs


def peer_uid(sock: socket.socket) -> int:
    """The user at the other end of an AF_UNIX connection, as the kernel knows it."""
    return _peer(sock)[1]


def peer_pid(sock: socket.socket) -> int:
    """The process that made the other end, or that listens there."""
    return _peer(sock)[0]


def _peer(sock: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid, gid


def _close(fds: Sequence[int] | deque[int]) -> None:
    for fd in fds:
        os.close(fd)
