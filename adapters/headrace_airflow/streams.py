"""Reading what a task writes: lines, in time proportional to their length, whatever the task does.

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


def line_reader(
    gen: Generator[None, bytes | bytearray, None],
    *,
    data: bytes = b"",
    on_close: Callable[[socket], None],
    buffer_size: int = _READ_BYTES,
) -> tuple[Callable[[socket], bool], Callable[[socket], None]]:
    """Stands in for ``make_buffered_socket_reader``: the same arguments, the same two callbacks.

    Args:
        gen: takes lines; not started yet.
        data: what was read before.
        on_close: handed back.
        buffer_size: ignored: what the stock caller thinks of.
    """
    is_log_channel = getattr(gen, "__name__", "").startswith("process_log_messages")
    longest = LONGEST_RECORD if is_log_channel else LONGEST_LINE
    pieces: list[bytes] = []
    held = left_out = 0
    next(gen)

    def hand_on() -> None:
        nonlocal held, left_out
        gen.send(_left_out(left_out + held) if left_out else b"".join(pieces))
        pieces.clear()
        held = left_out = 0

    def take(chunk: bytes) -> None:
        nonlocal held, left_out
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            pieces.append(line + b"\n")
            held += len(line) + 1
            hand_on()
        if rest:
            pieces.append(rest)
            held += len(rest)
            if held >= longest and is_log_channel:
                pieces.clear()
                left_out, held = left_out + held, 0
            elif held >= longest:
                hand_on()

    with suppress(StopIteration):
        take(data)

    def read(sock: socket) -> bool:
        chunk = sock.recv(_READ_BYTES)
        with suppress(StopIteration):
            if chunk:
                take(chunk)
                return True
            if held or left_out:
                hand_on()
        return False

    return read, on_close


def _left_out(size_bytes: int) -> bytes:
    """A record in place of one that is too long."""
    told = f"A record of {size_bytes} bytes is left out here: the longest may have {LONGEST_RECORD}"
    now = datetime.now(timezone.utc).isoformat()
    return json.dumps({"timestamp": now, "level": "warning", "logger": "headrace", "event": told}).encode()
