"""Which functions the workers know: each is pickled once per graph and sent once to each worker.

A function is pickled anew for every job, not once and for all: a function of ``__main__`` travels by value, and its
value includes globals that the user may have changed since (a notebook's cells). If the bytes are the same as before,
it is the function that the workers know already. The job of the futures never ends: there it is pickled for every task,
because between two submits the program may have changed what it refers to, as any argument.

What a function is made of may read a setting while it is unpickled. So where workers follow other states of companions
it is another function: it has another number, and is opened after they follow them, whatever is in their queue before.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from headrace.companions import States
from headrace.store.pickling import Packed, pack
from headrace.store.unfinished import forbid_unfinished

_MOST_JOBS: Final = 256
_MOST_FUNCTIONS: Final = 4096
_MOST_BYTES: Final = 64 << 20
_MOST_VARIANTS: Final = 256

FUTURES_BASE: Final = 0
"""Of the ids in the one job that never ends."""

_Place: TypeAlias = tuple[int, int]
"""Id of a function and the variant of the states under which it is opened."""

_EMPTY: Final[dict[_Place, tuple[Any, int, Packed]]] = {}


class Functions:
    """Numbers functions. Thread-safe.

    Args:
        call_foreign: has a function pickled; see :meth:`headrace.lanes.processes.host.Host.call_foreign`.
    """

    def __init__(self, call_foreign: Callable[..., Any]) -> None:
        self._call_foreign = call_foreign
        self._lock = threading.Lock()
        # Keyed by id: callables need not be hashable. What is first in an entry sees to it that the id stays its own.
        self._jobs: OrderedDict[int, dict[_Place, tuple[Any, int, Packed]]] = OrderedDict()
        self._known: dict[tuple[bytes, int], tuple[int, Packed]] = {}
        self._variants: dict[frozenset[tuple[str, bytes]], int] = {}
        self._next_variant = 0
        self._next = 0
        self._bytes = 0
        self.oldest = 0
        """Numbers below this one are not given out any more."""

    def variant(self, states: States) -> int:
        """A number for what a worker follows: the same for equal states, never one for others."""
        with self._lock:
            if len(self._variants) >= _MOST_VARIANTS:
                self._variants.clear()
            variant = self._variants.setdefault(frozenset(states.items()), self._next_variant)
            self._next_variant = max(self._next_variant, variant + 1)
            return variant

    def number(self, job: int, fn: Callable[..., Any], variant: int) -> tuple[int, Packed]:
        """The number and the pickle of a function in a job.

        Args:
            job: the base of its ids.
            fn: the function.
            variant: of what the worker follows when it opens the function.

        Raises:
            UnpicklableError: it cannot be pickled.
            MustStayHere: it must not leave this process.
        """
        found = self._jobs.get(job, _EMPTY).get((id(fn), variant))
        return (found[1], found[2]) if found is not None else self._add(job, fn, variant)

    def _add(self, job: int, fn: Callable[..., Any], variant: int) -> tuple[int, Packed]:
        forbid_unfinished(fn)
        packed: Packed = self._call_foreign(pack, fn, "function", True)
        with self._lock:
            # Functions of one graph may be as large as they like: forgetting one to send it again would be worse.
            if len(self._known) >= _MOST_FUNCTIONS or (self._bytes > _MOST_BYTES and job not in self._jobs):
                self._forget()
            known = self._known.get((packed.data, variant)) if not packed.buffers else None
            if known is None:
                known = self._next, packed
                self._next += 1
                self._bytes += packed.size_bytes
                if not packed.buffers:
                    self._known[packed.data, variant] = known
            if job == FUTURES_BASE:
                return known
            while job not in self._jobs and len(self._jobs) >= _MOST_JOBS:
                self._jobs.popitem(last=False)
            table = self._jobs.setdefault(job, {})
            table[id(fn), variant] = _holder(fn, table, (id(fn), variant)), *known
            return known

    def forget(self) -> None:
        """Has workers open all functions anew."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._jobs.clear()
        self._known.clear()
        self._bytes = 0
        self.oldest = self._next


def _holder(fn: Any, table: dict[_Place, Any], place: _Place) -> Any:
    """What is kept of a function while it has an entry: a weak reference, which takes the entry with it; a method may
    hold as much as its object does. Or itself, where there are none to it."""
    try:
        return weakref.ref(fn, lambda _: table.pop(place, None))
    except TypeError:
        return fn
