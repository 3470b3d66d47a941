"""The stage processes of a runtime, busy and idle, and what they share memory through."""

from __future__ import annotations

import os
import threading
import time
import weakref
from queue import Empty, SimpleQueue
from typing import Final

from headrace.lanes.stages.exchange import Exchange
from headrace.lanes.stages.process import LostError, StageProcess

_LOOK_EVERY_S: Final = 0.5


class Pool:
    """Thread-safe. While any process is idle, a thread looks after them: says which memory they may use again, and ends
    those that have had nothing to do for long.

    Args:
        buffer_bytes: of each input of a stage.
        idle_timeout_s: after which a process ends.
    """

    def __init__(self, buffer_bytes: int, idle_timeout_s: float) -> None:
        self._buffer_bytes = buffer_bytes
        self._idle_timeout_s = idle_timeout_s
        self._exchange = Exchange()
        self._lock = threading.Lock()
        self._idle: dict[StageProcess, float] = {}  # with when it came back; the last one is taken first
        self._all: set[StageProcess] = set()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()
        _pools.add(self)

    def take(self, most: int) -> StageProcess | None:
        """An idle process or, if there are fewer than so many, a new one, which is not up yet."""
        with self._lock:
            if self._closed:
                return None
            if self._idle:
                return self._idle.popitem()[0]
            if len(self._all) >= most:
                return None
            try:
                process = StageProcess(self._buffer_bytes, self._exchange)
            except OSError:
                return None
            self._all.add(process)
            return process

    def another(self, most: int, attempts: int) -> StageProcess | None:
        """As :meth:`take`. Blocks until it is up; of those that die before that, so many are started."""
        for _ in range(attempts):
            process = self.take(most)
            if process is None:
                break
            try:
                while not process.wait_until_ready(1.0):
                    pass
            except LostError:
                self.drop(process)
            else:
                return process
        return None

    def give_back(self, process: StageProcess) -> None:
        """A process has nothing to do any more. One that goes on all the same is ended."""
        with self._lock:
            if process.alive and not process.busy and process in self._all:
                self._idle[process] = time.monotonic()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._look_after, name="headrace-stages", daemon=True)
                    self._thread.start()
                return
        self.drop(process)

    def drop(self, process: StageProcess) -> None:
        """Ends a process."""
        with self._lock:
            known = process in self._all
            self._all.discard(process)
            self._idle.pop(process, None)
        if known:
            process.close()
            self._detach_forgotten()

    def close(self) -> None:
        """Ends all of them, and the thread."""
        with self._lock:
            self._closed = True
            processes, self._all = self._all, set()
            self._idle.clear()
            thread = self._thread
        self._wake.put(None)
        for process in processes:
            process.close()
        if thread is not None:
            thread.join()
        self._exchange.close()

    def _look_after(self) -> None:
        while self._is_needed():
            try:
                self._wake.get(timeout=_LOOK_EVERY_S)
            except Empty:
                pass
            self._exchange.tend()
            late_s = time.monotonic() - self._idle_timeout_s
            with self._lock:
                for process in self._idle:
                    process.tend()
                late = [process for process, since_s in self._idle.items() if since_s < late_s or not process.alive]
                for process in late:
                    del self._idle[process]
            for process in late:
                self.drop(process)
            self._detach_forgotten()

    def _is_needed(self) -> bool:
        """Whether the thread is; if not, the next idle process has a new one started."""
        with self._lock:
            if not self._closed and (self._idle or self._exchange.in_use):
                return True
            self._thread = None
            return False

    def _detach_forgotten(self) -> None:
        forgotten = self._exchange.take_forgotten()
        with self._lock:
            processes = list(self._all) if forgotten else []
        for process in processes:
            for place in forgotten:
                process.detach(place)

    def forget_in_child(self) -> None:
        """In a forked child: keeps no descriptor, so no memory of the parent's, and none of its processes alive."""
        for process in self._all:
            process.forget_in_child()
        self._exchange.forget_in_child()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_in_child() -> None:
    for pool in list(_pools):
        pool.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
