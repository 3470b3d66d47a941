"""Ctrl-C waits while state is being changed.

``KeyboardInterrupt`` can be raised between any two bytecodes of the main thread, also while the decision core or a lane
is half-way through a change. So while the main thread runs a graph, SIGINT has a handler of ours, which defers the
interrupt for as long as the main thread is inside the shield.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class InterruptShield:
    """A context manager, re-entrant and usable from any thread; it has an effect in the main thread only.

    Raises:
        KeyboardInterrupt: on leaving, if Ctrl-C was pressed meanwhile.
    """

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._depth = 0  # of the main thread
        self._deferred = False
        self._installed = False

    def install(self) -> Callable[[], None]:
        """In the main thread: puts our handler in the place of SIGINT's. Returns what puts the old one back."""
        if threading.get_ident() != self._main or self._installed:
            return _nothing
        previous = signal.getsignal(signal.SIGINT)
        if not callable(previous):
            return _nothing

        def interrupt(signum: int, frame: FrameType | None) -> None:
            if self._depth:
                self._deferred = True
            else:
                previous(signum, frame)

        def restore() -> None:
            signal.signal(signal.SIGINT, previous)
            self._installed = False

        signal.signal(signal.SIGINT, interrupt)
        self._installed = True
        return restore

    def __enter__(self) -> None:
        if threading.get_ident() == self._main:
            self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if threading.get_ident() == self._main:
            self._depth -= 1
            if self._deferred and not self._depth:
                self._deferred = False
                raise KeyboardInterrupt


def _nothing() -> None: ...
