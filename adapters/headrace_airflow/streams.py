"""Reading what a task writes: lines and requests, in time proportional to their length, whatever the task does.

Stock rescans its buffer after every 4 KB, so that a line of 100 MB takes minutes, and waits for the end of a line
however long it becomes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import suppress
from datetime import datetime, timezone
from socket import socket
from typing import Final

_READ_BYTES: Final = 1 << 18
LONGEST_LINE: Final = 1 << 20
"""A longer line of plain output is handed on in pieces of this size."""
LONGEST_RECORD: Final = 1 << 28
"""A longer record of the log channel is left out, and a line in the log says so."""


class LineReader:
    """Reads a socket when it is called; false: there is no more to come."""

    def __init__(self, gen: Generator[None, bytes | bytearray, None], longest: int, leaves_out: bool) -> None:
        self._gen = gen
        self._longest = longest
        self._leaves_out = leaves_out
        """What is too long is left out, instead of handed on in pieces."""
        self._pieces: list[bytes] = []
        self._held = self._left_out = 0

    def __call__(self, sock: socket) -> bool:
        chunk = sock.recv(_READ_BYTES)
        with suppress(StopIteration):
            if chunk:
                self.take(chunk)
                return True
            if not self.is_between:
                self._hand_on()
        return False

    @property
    def is_between(self) -> bool:
        """Whether everything that was read has been handed on."""
        return not (self._held or self._left_out)

    def take(self, chunk: bytes) -> None:
        """Hands on the lines that a chunk ends, and holds the rest. Raises StopIteration if nobody takes any more."""
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._hold(line + b"\n")
            self._hand_on()
        if rest:
            self._hold(rest)
            if self._held >= self._longest and self._leaves_out:
                self._pieces.clear()
                self._left_out, self._held = self._left_out + self._held, 0
            elif self._held >= self._longest:
                self._hand_on()

    def _hold(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._held += len(piece)

    def _hand_on(self) -> None:
        whole = _left_out(self._left_out + self._held) if self._left_out else b"".join(self._pieces)
        self._pieces.clear()
        self._held = self._left_out = 0
        self._gen.send(whole)


class FrameWatch:
    """Stands around stock's reader of requests, which does not say whether it is in the middle of one."""

    def __init__(self, read: Callable[[socket], bool]) -> None:
        self._read = read
        self.is_between = True
        """To be set by who gets a whole request."""

    def __call__(self, sock: socket) -> bool:
        self.is_between = False
        return self._read(sock)


def line_reader(
    gen: Generator[None, bytes | bytearray, None],
    *,
    data: bytes = b"",
    on_close: Callable[[socket], None],
    buffer_size: int = _READ_BYTES,
) -> tuple[LineReader, Callable[[socket], None]]:
    """Stands in for ``make_buffered_socket_reader``: the same arguments, the same two callbacks.

    Args:
        gen: takes lines; not started yet.
        data: what was read before.
        on_close: handed back.
        buffer_size: ignored: what the stock caller thinks of.
    """
    is_log_channel = getattr(gen, "__name__", "").startswith("process_log_messages")
    longest = LONGEST_RECORD if is_log_channel else LONGEST_LINE
    read = LineReader(gen, longest, is_log_channel)
    next(gen)
    with suppress(StopIteration):
        read.take(data)
    return read, on_close


def _left_out(size_bytes: int) -> bytes:
    """A record in place of one that is too long."""
    told = f"A record of {size_bytes} bytes is left out here: the longest may have {LONGEST_RECORD}"
    now = datetime.now(timezone.utc).isoformat()
    return json.dumps({"timestamp": now, "level": "warning", "logger": "headrace", "event": told}).encode()
