"""Which stages run in processes of their own.

A stage that begins looks at those that run here first. If they wait, or let go of the GIL, it runs here, at once and
without a copy. If they hold the GIL, it would only slow them down: it runs in a stage process, for which it waits as
long as its producers go on, unless items are made so fast that sending them would take longer. In lane ``processes``
every stage does that can.

Whether somebody holds the GIL is seen from how late a sleeper wakes: who wants the GIL back from Python code waits for
5 ms. Time in the kernel's run queue is not the GIL's fault.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from headrace.errors import NOT_STARTED, WorkerDied
from headrace.lanes.slots import queued_s
from headrace.lanes.stages.pool import Pool
from headrace.lanes.stages.process import LostError, StageProcess
from headrace.shell.attempts import Stage, streams_in
from headrace.stream.source import Source

PROBE_S: Final = 0.0002
LATE_S: Final = 0.003
PROBES: Final = 5
SEND_S: Final = 2e-6
"""What it costs to send a small item to a process. If items take less to make, sending them takes longer than whatever
their producer could be kept from."""
_LOOK_S: Final = 0.1
"""No process is started for a stage whose producers end within this time: a process takes longer to start."""
_ANY_NUMBER: Final = 1 << 30
_WAITING_BELOW, _KNOWN_FROM_S = 0.5, 0.005
"""A stage that computed for less than this share of its time so far is in nobody's way."""


class Moving:
    """Runs stages where they run best. Thread-safe.

    Args:
        most: processes that may be started for stages which need not have one.
        pool: of the processes.
        max_deaths: after how many deaths a stage is given up.
        about_to_wait: called in a thread that will wait.
        feeding: told which thread reads on behalf of which stage's thread; or of none any more (0).
        live: the streams that are made in this process.
    """

    def __init__(
        self,
        most: int,
        pool: Pool,
        max_deaths: int,
        about_to_wait: Callable[[], None],
        feeding: Callable[[int, int], object],
        live: Callable[[], Iterable[Source]],
    ) -> None:
        self._most = most
        self.pool = pool
        self.max_deaths = max_deaths
        self.about_to_wait = about_to_wait
        self.feeding = feeding
        self._live = live

    def call(self, key: str, forced: bool, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What the stage returns, wherever it runs; in its thread.

        Args:
            forced: it is to run in a process, if it can.
            args: whose streams are the task's own handles.
        """
        sources = [stream.source for stream in streams_in(args)]
        process: StageProcess | None = None
        if forced:
            self.about_to_wait()
            process = self.another(forced)
            if process is None:
                raise WorkerDied(key, 1, f"{NOT_STARTED}: no process is left, or the Runtime has ended")
        elif holds_gil(sources, self._live()):
            process = self._process(sources)
        return Stage(self, key, forced, fn, args, kwargs).call(process)

    def call_here(self, key: str, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As :meth:`call`, for a stage that must not leave this process."""
        return Stage(self, key, False, fn, args, kwargs).call(None)

    def _process(self, sources: list[Source]) -> StageProcess | None:
        """An idle process, or a new one once it is up, if the producers go on for so long."""
        process = self.pool.take(0)
        if process is not None and process.ready:
            return process
        with _Ending(sources) as ending:
            if process is None:
                process = None if ending.wait(_LOOK_S) else self.pool.take(self._most)
            if process is None:
                return None
            self.about_to_wait()
            try:
                while not process.wait_until_ready(1.0, ending.fd):
                    if ending.wait(0.0):
                        self.pool.give_back(process)  # for the next stage
                        return None
            except LostError:
                self.pool.drop(process)
                return None
        return process

    def another(self, forced: bool) -> StageProcess | None:
        """A process, once it is up."""
        return self.pool.another(_ANY_NUMBER if forced else self._most, self.max_deaths)


class _Ending:
    """Notices that all of these sources have come to their ends."""

    def __init__(self, sources: list[Source]) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._going_on = len(sources)
        for source in sources:
            source.at_end(self._ended)

    def _ended(self) -> None:
        with self._lock:
            self._going_on -= 1
            if not self._going_on and self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def wait(self, timeout_s: float) -> bool:
        """Whether all have ended, after at most this time."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000.0))

    def __enter__(self) -> _Ending:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            os.close(self.fd)
            self.fd = -1


def holds_gil(sources: list[Source], live: Iterable[Source]) -> bool:
    """Whether the stages of this process keep the GIL from this thread. Takes a moment, if they compute.

    Args:
        sources: what this thread is to read; once all of them are complete, it does not matter any more.
        live: the streams that are made in this process.
    """
    if not any(_computes(source) for source in live):
        return False
    late = 0
    for probe in range(PROBES):
        queued_s()
        began_s = time.perf_counter()
        time.sleep(PROBE_S)  # what is measured is how late it ends
        took_s = time.perf_counter() - began_s
        late += took_s - queued_s() > LATE_S
        if late * 2 <= probe or all(source.flow.over for source in sources):
            return False
    return late * 2 > PROBES and any(_worth_sending(source) for source in sources)


def _worth_sending(source: Source) -> bool:
    """Whether its items take longer to make than to send."""
    _, busy_s = source.used()
    return busy_s > SEND_S * source.count


def _computes(source: Source) -> bool:
    if source.flow.over or source.thread is None:
        return False
    took_s, busy_s = source.used()
    return took_s < _KNOWN_FROM_S or busy_s > _WAITING_BELOW * took_s
