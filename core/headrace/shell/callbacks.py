"""Where the callbacks of futures are called: in a thread of their own.

A callback is foreign code that may take long, and may wait for another future. The thread that ends a task is the slot
that the next task may be meant for, or the io thread that hears of all others: nothing may wait there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

from headrace.background import Background

_log: Final = logging.getLogger(__name__)


class Callbacks:
    """The thread, started with the first callback, which calls one after the other. Thread-safe."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[Any], object], Any] | None] = SimpleQueue()
        self._lock = threading.RLock()  # a destructor may add a callback at any moment
        self._thread = Background(self._run, "headrace-callbacks")
        self._closed = False
        self._used = False

    def call(self, callback: Callable[[Any], object], future: Any) -> None:
        """Has ``callback(future)`` called soon. What it raises is logged, as ``concurrent.futures`` does."""
        with self._lock:
            closed = self._closed
            if not closed:
                self._used = True
                self._queue.put((callback, future))
        if not closed:
            self._thread.start()
            return
        callback(future)  # the future ended in the very moment of the shutdown: no task is kept waiting any more

    def wait(self) -> None:
        """Returns when those have returned that stand in the queue now, unless called by one."""
        if self._used and not self._thread.is_current:  # used: its thread may be just about to be started
            returned = threading.Event()
            self.call(lambda _: returned.set(), None)
            returned.wait()

    def close(self) -> None:
        """Has the thread end after what is in its queue."""
        with self._lock:
            self._closed = True
            self._queue.put(None)

    def join(self) -> None:
        """After :meth:`close`: returns when the last callback has returned, unless called by one."""
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            callback, future = item
            try:
                callback(future)
            except BaseException:  # not even SystemExit may end the thread that others' callbacks wait for
                _log.exception("exception calling callback for %r", future)
            del item, callback, future  # or the future would live until the next one comes
