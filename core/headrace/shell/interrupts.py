"""Ctrl-C waits while state is being changed.

``KeyboardInterrupt`` can be raised between any two bytecodes of the main thread, also while the decision core or a lane
is half-way through a change. So inside the shield SIGINT has a handler of ours in the main thread, which defers the
interrupt until the shield is left; then it goes to the handler that was there before, which may raise or not.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class InterruptShield:
    """A context manager, re-entrant and usable from any thread; it has an effect in the main thread only.

    Raises:
        KeyboardInterrupt: on leaving, if Ctrl-C was pressed meanwhile (or whatever the user's own handler raises).
    """

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._depth = 0  # of the main thread
        self._deferred: tuple[int, FrameType | None] | None = None
        self._previous: Callable[[int, FrameType | None], Any] = signal.default_int_handler
        self._handler = self._interrupt  # one object, so that it can be recognised
        self._restore = _nothing

    def install(self) -> Callable[[], None]:
        """In the main thread: puts our handler in the place of SIGINT's, so that the many uses of the shield that
        follow cost nothing. Returns what puts the old one back."""
        if threading.get_ident() != self._main:
            return _nothing
        previous = signal.getsignal(signal.SIGINT)
        if previous is self._handler or not callable(previous):
            return _nothing
        self._previous = previous
        signal.signal(signal.SIGINT, self._handler)
        return self._uninstall

    def _uninstall(self) -> None:
        if signal.getsignal(signal.SIGINT) is self._handler:  # or else a task has set another one
            signal.signal(signal.SIGINT, self._previous)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._depth:
            self._deferred = signum, frame
        else:
            self._previous(signum, frame)

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            if not self._depth:
                self._restore = self.install()
            self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if threading.get_ident() == self._main:
            self._depth -= 1
            if not self._depth:
                self._restore()
                deferred, self._deferred = self._deferred, None
                if deferred is not None:
                    self._previous(*deferred)


def _nothing() -> None: ...
