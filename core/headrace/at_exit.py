"""When the program ends, what was submitted is finished, as the executors of the standard library do."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from typing import Any, Protocol


class Ending(Protocol):
    """What has something to finish."""

    def finish(self) -> None:
        """The main thread has ended; threads that go on may still bring work. Blocks."""

    def retire(self) -> None:
        """The interpreter ends. Blocks."""


_open: weakref.WeakSet[Ending] = weakref.WeakSet()


def remember(ending: Ending) -> None:
    if not _open:
        atexit.register(_retire_all)
    _open.add(ending)


def forget(ending: Ending) -> None:
    """It has nothing to finish any more."""
    _open.discard(ending)


def _finish_all() -> None:
    """Earlier than ``atexit``, whose handlers close and remove what tasks may use, and in children of
    ``multiprocessing``, which have no ``atexit``."""
    for ending in list(_open):
        ending.finish()


def _retire_all() -> None:
    atexit.unregister(_retire_all)
    for ending in list(_open):
        ending.retire()
    _open.clear()


os.register_at_fork(after_in_child=_open.clear)
_threading: Any = threading
with contextlib.suppress(RuntimeError):  # imported when the interpreter ends already
    _threading._register_atexit(_finish_all)  # where ``concurrent.futures`` waits, too
