"""Threads that come up when they are first needed.

``Thread.start`` waits until the new thread runs, and before it says so the garbage collector may call destructors in
it. So nobody may hold a lock meanwhile that a destructor can want: it would wait for ever.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable


class Background:
    """A daemon thread that is started once, by one of those who need it. Thread-safe.

    Args:
        run: what it does.
        name: its name.
    """

    def __init__(self, run: Callable[[], object], name: str) -> None:
        self._run = run
        self._name = name
        self._claim = threading.Lock()  # taken for good by who starts it, or sees to it that nobody does
        self._is_up = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts it, unless somebody has, or is about to, or it was cancelled. Under no lock that destructors want.

        Raises:
            RuntimeError: no thread is left for this process.
        """
        if self._is_up.is_set() or not self._claim.acquire(blocking=False):
            return
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except BaseException:
            self._claim.release()
            raise
        self._thread = thread
        self._is_up.set()

    def cancel(self) -> bool:
        """Sees to it that it is never started; False if it has been, or is just being."""
        return self._claim.acquire(blocking=False)

    @property
    def is_current(self) -> bool:
        """Whether this is the current thread."""
        return self._thread is threading.current_thread()

    def join(self, timeout_s: float | None = None) -> None:
        """Waits for its end, if it was started, and unless it is the current thread."""
        thread = self._thread
        if thread is not None and not self.is_current:
            thread.join(timeout_s)


def start_aside(run: Callable[[], object], name: str) -> None:
    """Starts a daemon thread, whatever locks the caller holds: it is yet another thread that waits for it.

    Raises:
        RuntimeError: no thread is left for this process.
    """
    _thread.start_new_thread(threading.Thread(target=run, name=name, daemon=True).start, ())
