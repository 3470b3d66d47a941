"""Signal handlers wait while state is being changed.

A handler in Python runs between any two bytecodes of the main thread, and may raise: ``KeyboardInterrupt`` for Ctrl-C,
or the end of somebody's patience for an alarm. That can be while the decision core or a lane is half-way through a
change, or between a decision and what follows from it. So inside the shield the handlers of such signals are replaced
by one of ours, which defers the signal until the shield is left; then it goes to the handler that was there before,
which may raise or not.

Foreign code that may take long, called where an exception does no harm, is called through a hole in the shield: there
Ctrl-C is not deferred, if all that its handler does is to raise ``KeyboardInterrupt``.

Invariant: outside the shield our handler only passes signals on. So it does no harm where an exception has kept it from
being taken away; the next one that comes by takes it away.
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, TypeVar

T = TypeVar("T")

Handler = Callable[[int, "FrameType | None"], Any]

_signal: Final[Any] = importlib.import_module("_signal")
"""What lies under ``signal``, which turns all that goes through it into enums: that takes 20 times as long."""

_NUMBERS: Final = tuple(
    int(number)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGALRM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGVTALRM,
        signal.SIGPROF,
        signal.SIGXCPU,
    )
)
"""The signals whose handlers raise in practice."""


class InterruptShield:
    """A context manager, re-entrant and usable from any thread; it has an effect in the main thread only.

    Raises:
        BaseException: on leaving, whatever the handler of a signal raises that came meanwhile.
    """

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._depth = 0  # of the main thread
        self._hole = False  # at depth 1: see call_foreign
        self._levels: list[dict[int, Handler]] = []
        """The handlers that each :meth:`install` has found, by number: a task can set one, and run another graph."""
        self._whole = False  # our handler stands wherever it should: nothing has kept it from being put there
        self._temporary = False  # it does so only until the shield is left
        self._deferred: dict[int, tuple[Handler, FrameType | None]] = {}
        self._handler = self._interrupt  # one object, so that it can be recognised

    # A handler runs after calls and jumps only: assignments that follow each other without any are never torn apart.

    def level(self, nested: bool) -> int:
        """What is to be given to :meth:`uninstall`, asked before :meth:`install`.

        Args:
            nested: somebody has installed it already who will call :meth:`uninstall` later.
        """
        return len(self._levels) if nested or self._depth else 0

    def install(self) -> None:
        """In the main thread: puts our handler in the place of the others, so that the many uses of the shield that
        follow cost nothing."""
        if threading.get_ident() != self._main:
            return
        found: dict[int, Handler] = {}
        self._levels.append(found)
        for number in _NUMBERS:
            handler: Any = _signal.getsignal(number)
            if callable(handler) and handler is not self._handler:
                found[number] = handler
                _signal.signal(number, self._handler)
        self._whole = True

    def uninstall(self, level: int) -> None:
        """Puts back what was found, down to this level."""
        if threading.get_ident() != self._main:
            return
        self._whole = False
        while len(self._levels) > level:
            for number, handler in self._levels[-1].items():
                if _signal.getsignal(number) is self._handler:  # or else a task has set another one
                    _signal.signal(number, handler)
            self._levels.pop()
        self._whole = level > 0

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        handler = signal.default_int_handler
        for found in self._levels:
            handler = found.get(signum, handler)
        if self._depth and not (self._hole and self._depth == 1 and handler is signal.default_int_handler):
            self._deferred[signum] = handler, frame
        else:
            handler(signum, frame)

    def call_foreign(self, fn: Callable[..., T], *args: Any) -> T:
        """Calls what runs users' code, so that Ctrl-C stops it; unless the shield was entered twice, since only who
        calls this knows that an exception does no harm.

        Other handlers wait as ever: their exceptions could not be told from those of ``fn``.

        Raises:
            KeyboardInterrupt: out of the handler of a signal; also if one was deferred before.
            BaseException: whatever ``fn`` raises.
        """
        if threading.get_ident() != self._main or self._depth != 1:
            return fn(*args)
        self._hole = True
        try:
            for signum, (handler, frame) in list(self._deferred.items()):
                if handler is signal.default_int_handler:
                    del self._deferred[signum]
                    handler(signum, frame)
            return fn(*args)
        finally:
            self._hole = False

    def __enter__(self) -> None:
        if threading.get_ident() != self._main:
            return
        self._depth += 1
        if self._depth == 1 and not self._whole:
            self._temporary = True
            try:
                self.install()
            except BaseException:
                self._depth = 0
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if threading.get_ident() != self._main:
            return
        if self._depth > 1:
            self._depth -= 1
            return
        try:
            if self._temporary:
                self.uninstall(0)
                self._temporary = False
        finally:
            self._depth = 0
            while self._deferred:
                signum, (handler, frame) = self._deferred.popitem()
                handler(signum, frame)
