"""Which functions the workers know: each is pickled once per job and sent once to each worker.

A function is pickled anew for every job, not once and for all: a function of ``__main__`` travels by value, and its
value includes globals that the user may have changed since (a notebook's cells). If the bytes are the same as before,
it is the function that the workers know already.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from headrace.store.hashes import forbid_hash
from headrace.store.pickling import Packed, pack

_MOST_JOBS: Final = 256
_MOST_FUNCTIONS: Final = 4096
_MOST_BYTES: Final = 64 << 20
_EMPTY: Final[dict[int, tuple[Any, int, Packed]]] = {}


class Functions:
    """Numbers functions. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Keyed by id: callables need not be hashable. The function itself is kept, so that its id stays its own.
        self._jobs: OrderedDict[int, dict[int, tuple[Callable[..., Any], int, Packed]]] = OrderedDict()
        self._known: dict[bytes, tuple[int, Packed]] = {}
        self._next = 0
        self._bytes = 0
        self.oldest = 0
        """Numbers below this one are not given out any more."""

    def number(self, job: int, fn: Callable[..., Any]) -> tuple[int, Packed]:
        """The number and the pickle of a function in a job; the job is given by the base of its ids.

        Raises:
            UnpicklableError: it cannot be pickled.
            MustStayHere: it must not leave this process.
        """
        found = self._jobs.get(job, _EMPTY).get(id(fn))
        return (found[1], found[2]) if found is not None else self._add(job, fn)

    def _add(self, job: int, fn: Callable[..., Any]) -> tuple[int, Packed]:
        forbid_hash(fn)
        packed = pack(fn, "function")
        with self._lock:
            # Functions of one job may be as large as they like: forgetting one to send it again would be worse.
            if len(self._known) >= _MOST_FUNCTIONS or (self._bytes > _MOST_BYTES and job not in self._jobs):
                self._forget_all()
            known = self._known.get(packed.data) if not packed.buffers else None
            if known is None:
                known = self._next, packed
                self._next += 1
                self._bytes += packed.size_bytes
                if not packed.buffers:
                    self._known[packed.data] = known
            while job not in self._jobs and len(self._jobs) >= _MOST_JOBS:
                self._jobs.popitem(last=False)
            self._jobs.setdefault(job, {})[id(fn)] = fn, *known
            return known

    def _forget_all(self) -> None:
        self._jobs.clear()
        self._known.clear()
        self._bytes = 0
        self.oldest = self._next
