"""What finalizers and destructors have to say: they are called at any moment, and can be given no decision then.

    finalizer of a future ───── note ──┬──> (asleep? wake) ──> thread: gathers for a moment ──> events
    destructor that submits ── defer ──┘

So the value of a future that nobody holds any more goes at once, not only when the machine hears of something else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Final, TypeVar

from headrace.background import Background
from headrace.sched.events import Event

T = TypeVar("T")

GATHER_S: Final = 0.002
"""What is dropped one after the other, as a list of futures is, becomes one event."""


class Dropped:
    """The tasks of dropped futures, deferred events, and the thread that has the machine told of them; it sleeps while
    there are none.

    Args:
        tell: called in that thread while there are some; expected to :meth:`take` them.
    """

    def __init__(self, tell: Callable[[], object]) -> None:
        self._tell = tell
        self._tasks: deque[int] = deque()
        self._events: deque[Event] = deque()
        # Its put() may interrupt itself, as finalizers do, which no lock of Python's allows.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._asleep = False
        self._stop = threading.Event()
        self._thread = Background(self._run, "headrace-dropped")

    def __bool__(self) -> bool:
        return bool(self._tasks or self._events)

    def start(self) -> None:
        """Starts the thread, unless it runs; not under the runtime's lock.

        Raises:
            RuntimeError: no thread is left for this process.
        """
        self._thread.start()

    def note(self, task: int) -> None:
        """Called by the finalizer of a future: anywhere, in any thread, also under the runtime's lock."""
        self._tasks.append(task)
        if self._asleep:
            self._wake.put(None)

    def defer(self, events: Iterable[Event]) -> None:
        """Called by destructors under the runtime's lock, in the midst of a change."""
        self._events.extend(events)
        if self._asleep:
            self._wake.put(None)

    def take(self) -> tuple[tuple[int, ...], tuple[Event, ...]]:
        """Removes and returns all of them; the events are to be told first."""
        # In this order, because more may come meanwhile: whatever is dropped here was submitted before.
        tasks = _emptied(self._tasks)
        return tasks, _emptied(self._events)

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._wake.put(None)
        self._thread.cancel()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._asleep = True
            if not self:  # looked at now: what came before saw nobody asleep
                self._wake.get()
            self._asleep = False
            if self._stop.wait(GATHER_S):
                return
            if self:
                self._tell()


def _emptied(queue: deque[T]) -> tuple[T, ...]:
    found = []
    while queue:
        found.append(queue.popleft())
    return tuple(found)
