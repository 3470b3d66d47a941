"""At most so many processes of one node in the same place at once; here: in a request to the API server.

An API server with default settings has 15 database connections, and answers 500 when one was waited for in vain for
30 s. A hundred supervisors whose tasks start or end together would keep everybody else's requests waiting as well; so
they wait here, and in no queue that somebody has to keep: whoever is killed inside makes room.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Made in one process, used in those forked from it. No process may enter twice.

    Args:
        width: how many may be inside at once.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._fd = os.memfd_create("headrace-gate", os.MFD_CLOEXEC)
        """Each who is inside has locked one byte: record locks belong to processes, and end with them."""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Blocks until there is room."""
        byte = self._free_byte()
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)

    def _free_byte(self) -> int:
        first = os.getpid() % self._width
        for byte in itertools.chain(range(first, self._width), range(first)):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            except BlockingIOError:
                continue
            return byte
        fcntl.lockf(self._fd, fcntl.LOCK_EX, 1, first)
        return first
