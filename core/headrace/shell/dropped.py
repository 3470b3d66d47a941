"""Futures that nobody holds any more: their values go at once, not only when the machine hears of something else.

finalizer of a future ── note ──> (asleep? wake) ──> thread: gathers for a moment ──> event FuturesDropped
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

GATHER_S: Final = 0.002
"""What is dropped one after the other, as a list of futures is, becomes one event."""


class Dropped:
    """The tasks of such futures, and the thread that has the machine told of them; it sleeps while there are none.

    Args:
        tell: called in that thread while there are some; expected to :meth:`take` them.
    """

    def __init__(self, tell: Callable[[], object]) -> None:
        self._tell = tell
        self._tasks: deque[int] = deque()
        # Its put() may interrupt itself, as finalizers do, which no lock of Python's allows.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._asleep = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def start(self) -> None:
        """Starts the thread, unless it runs. Not to be called by several threads at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="headrace-dropped", daemon=True)
            self._thread.start()

    def note(self, task: int) -> None:
        """Called by finalizers: anywhere, in any thread, also under the runtime's lock."""
        self._tasks.append(task)
        if self._asleep:
            self._wake.put(None)

    def take(self) -> tuple[int, ...]:
        """Removes and returns all of them."""
        tasks = []
        while self._tasks:
            tasks.append(self._tasks.popleft())
        return tuple(tasks)

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._wake.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._asleep = True
            if not self._tasks:  # looked at now: what came before saw nobody asleep
                self._wake.get()
            self._asleep = False
            if self._stop.wait(GATHER_S):
                return
            if self._tasks:
                self._tell()
