"""A task that is done when somebody else says so: :class:`Gate`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Gate:
    """What a task returns that is not done before this is opened. Thread-safe.

    Until then its dependents wait, and no thread or slot does. The task's value is None. For tasks that stay in this
    process (``Graph.pinned``), and each for one task.
    """

    __slots__ = ("_error", "_hear", "_lock", "_open")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = False
        self._error: BaseException | None = None
        self._hear: Callable[[BaseException | None], object] | None = None

    def open(self, error: BaseException | None = None) -> None:
        """The task is done, or has failed with this error. Only the first call counts."""
        with self._lock:
            if self._open:
                return
            self._open, self._error, hear = True, error, self._hear
        if hear is not None:
            hear(error)

    def when_open(self, hear: Callable[[BaseException | None], object]) -> None:
        """Calls this with the error, or None, once it is open; perhaps at once."""
        with self._lock:
            self._hear, is_open = hear, self._open
        if is_open:
            hear(self._error)

    def wait(self) -> None:
        """Blocks until it is open.

        Raises:
            BaseException: the error.
        """
        opened: SimpleQueue[BaseException | None] = SimpleQueue()
        self.when_open(opened.put)
        error = opened.get()
        if error is not None:
            raise error
