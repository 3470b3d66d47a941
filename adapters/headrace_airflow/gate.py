"""At most so many processes of one node in the same place at once; here: in a request to the API server.

An API server with default settings has 15 database connections, and answers 500 when one was waited for in vain for
30 s. A hundred supervisors whose tasks start or end together would keep everybody else's requests waiting as well; so
they wait here, and in no queue that somebody has to keep: whoever is killed inside makes room.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Made in one process, used in those forked from it; nobody forks while inside. Thread-safe.

    Threads of one process must be fewer than it is wide.

    Args:
        width: how many may be inside at once.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._fd = os.memfd_create("headrace-gate", os.MFD_CLOEXEC)
        """Each who is inside has locked one byte: record locks belong to processes, and end with them."""
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        """The bytes that threads of this process have locked, or wait for: the kernel would let all of them in."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Blocks until there is room."""
        byte = self._free_byte()
        try:
            yield
        finally:
            with self._lock:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)
                self._taken.discard(byte)

    def _free_byte(self) -> int:
        first = os.getpid() % self._width
        with self._lock:
            in_turn = itertools.chain(range(first, self._width), range(first))
            others = [byte for byte in in_turn if byte not in self._taken]
            for byte in others:
                try:
                    fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                except BlockingIOError:
                    continue
                self._taken.add(byte)
                return byte
            self._taken.add(others[0])
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, others[0])
        return others[0]
