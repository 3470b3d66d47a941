"""Measures the CPU time of tasks without paying two system calls for each quick one."""

from __future__ import annotations

import time
from typing import Final

_WORTH_S: Final = 200e-6
"""Quicker tasks are not measured: reading both CPU clocks takes about a µs."""

_MARK_EVERY_S: Final = 1e-3


class Meter:
    """CPU clocks of the calling thread and process. For one thread.

    A mark remembers all clocks. Between the last mark and the begin of a task the thread was busy with quick tasks, so
    that time is CPU time; marks are at most a millisecond old when a task begins, which bounds the error.
    """

    __slots__ = ("_clock_s", "_process_s", "_thread_s")

    def __init__(self) -> None:
        self.mark(time.monotonic())

    def mark(self, now_s: float) -> None:
        """Reads the clocks."""
        self._clock_s = now_s
        self._thread_s = time.thread_time()
        self._process_s = time.process_time()

    def begin(self, now_s: float) -> None:
        """A task begins. Idle time since the mark ends here at the latest: call it with every task."""
        if now_s - self._clock_s > _MARK_EVERY_S:
            self.mark(now_s)

    def end(self, start_s: float, end_s: float) -> tuple[float, float]:
        """A task that began at ``start_s`` has ended: gives its CPU seconds and its width; -1 twice if it was quick."""
        wall_s = end_s - start_s
        if wall_s < _WORTH_S:
            return -1.0, -1.0
        before_s = start_s - self._clock_s
        thread_s = self._thread_s
        process_s = self._process_s
        self.mark(end_s)
        cpu_s = max(0.0, self._thread_s - thread_s - before_s)
        width = max(0.0, self._process_s - process_s - before_s) / wall_s
        return cpu_s, width
