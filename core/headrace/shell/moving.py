"""Which stages run in processes of their own, and those processes.

A stage that begins looks at those that run here first. If they wait, or let go of the GIL, it runs here, at once and
without a copy. If they hold the GIL, it would only slow them down: it runs in a stage process, for which it waits as
long as its producers go on.

Whether somebody holds the GIL is seen from how late a sleeper wakes: who wants the GIL back from Python code waits for
5 ms. Time in the kernel's run queue is not the GIL's fault.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from headrace.errors import WorkerDied
from headrace.lanes.slots import queued_s
from headrace.lanes.stages.process import LostError, StageProcess, UnfitError
from headrace.stream.handle import Stream, for_task
from headrace.stream.source import Source
from headrace.stream.steps import steps_of

PROBE_S: Final = 0.0002
LATE_S: Final = 0.003
PROBES: Final = 5
_LOOK_S: Final = 0.02
_WAITING_BELOW, _KNOWN_FROM_S = 0.5, 0.005
"""A stage that computed for less than this share of its time so far is in nobody's way."""


class Moving:
    """The stage processes of a runtime. Thread-safe.

    Args:
        most: of them.
        buffer_bytes: of the streams in them.
        max_deaths: after how many deaths a stage is given up.
        about_to_wait: called in a thread that will wait.
        feeding: told which thread reads on behalf of which stage's thread; or of none any more (0).
        live: the streams that are made in this process.
    """

    def __init__(
        self,
        most: int,
        buffer_bytes: int,
        max_deaths: int,
        about_to_wait: Callable[[], None],
        feeding: Callable[[int, int], object],
        live: Callable[[], Iterable[Source]],
    ) -> None:
        self._most = most
        self._buffer_bytes = buffer_bytes
        self.max_deaths = max_deaths
        self.about_to_wait = about_to_wait
        self.feeding = feeding
        self._live = live
        self._lock = threading.Lock()
        self._idle: list[StageProcess] = []
        self._all: set[StageProcess] = set()
        self._closed = False

    def call(self, task: int, key: str, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any] | None) -> Any:
        """What the stage returns, wherever it runs; in its thread.

        Args:
            args: whose streams are the task's own handles.
        """
        sources = [stream.source for stream in streams_in(args)]
        process = self._process(sources) if holds_gil(sources, self._live()) else None
        if process is None:
            return fn(*args, **(kwargs or {}))
        return _Stage(self, task, key, fn, args, kwargs).run(process)

    def _process(self, sources: list[Source]) -> StageProcess | None:
        """An idle process, or a new one once it is up, if the producers go on for so long."""
        process = self.take(new=False)
        if process is None and _go_on(sources):
            process = self.take()
        while process is not None and not process.ready:
            self.about_to_wait()
            try:
                if process.wait_until_ready(_LOOK_S):
                    break
            except LostError:
                self.drop(process)
                return None
            if all(source.flow.over for source in sources):
                self.give_back(process)  # for the next stage
                return None
        return process

    def another(self) -> StageProcess | None:
        """A process in place of one that has died."""
        process = self.take()
        try:
            while process is not None and not process.wait_until_ready(1.0):
                pass
        except LostError:
            assert process is not None
            self.drop(process)
            return None
        return process

    def take(self, new: bool = True) -> StageProcess | None:
        """An idle process or, if that is asked for and there are not enough, a new one."""
        with self._lock:
            if self._closed:
                return None
            if self._idle:
                return self._idle.pop()
            if not new or len(self._all) >= self._most:
                return None
            try:
                process = StageProcess(self._buffer_bytes)
            except OSError:
                return None
            self._all.add(process)
            return process

    def give_back(self, process: StageProcess) -> None:
        with self._lock:
            if process.alive and process in self._all:
                self._idle.append(process)
                return
        self.drop(process)

    def drop(self, process: StageProcess) -> None:
        with self._lock:
            known = process in self._all
            self._all.discard(process)
        if known:
            process.close()

    def close(self) -> None:
        """Ends all of them."""
        with self._lock:
            self._closed = True
            processes, self._all, self._idle = self._all, set(), []
        for process in processes:
            process.close()


class _Stage:
    """One stage that runs elsewhere, from its start to its end, over as many processes as it takes."""

    def __init__(
        self, moving: Moving, task: int, key: str, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any] | None
    ) -> None:
        self._moving = moving
        self._task = task
        self._key = key
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self._deaths = 0

    def run(self, process: StageProcess | None) -> Any:
        """Its value; a generator, if it makes a stream."""
        moving, thread = self._moving, threading.get_ident()
        if process is not None:
            moving.about_to_wait()  # it needs no slot of this process
        while process is not None:
            try:
                streams, value = process.run(
                    self._fn, self._args, self._kwargs, lambda feeder, on: moving.feeding(feeder, thread if on else 0)
                )
            except UnfitError:
                moving.drop(process)
                break
            except LostError as death:
                process = self._replace(process, death)
                continue
            except BaseException:
                moving.give_back(process)
                raise
            if streams:
                return self._items(process, value)
            moving.give_back(process)
            return value
        return self._fn(*self._fresh_args(), **(self._kwargs or {}))

    def _items(self, process: StageProcess, items: Iterator[Any]) -> Iterator[Any]:
        made = 0
        try:
            for item in items:
                made += 1
                yield item
        except UnfitError:
            self._moving.drop(process)
            rest = self.run(None)
        except LostError as death:
            rest = self.run(self._replace(process, death))
        except BaseException:
            items.close()  # type: ignore[attr-defined]
            self._moving.give_back(process)
            raise
        else:
            self._moving.give_back(process)
            return
        yield from islice(steps_of(rest), made, None)

    def _replace(self, process: StageProcess, death: LostError) -> StageProcess | None:
        """After a death: another process, and inputs from the start."""
        self._moving.drop(process)
        self._deaths += 1
        if self._deaths >= self._moving.max_deaths:
            raise WorkerDied(self._key, self._deaths, str(death))
        self._args = self._fresh_args()
        return self._moving.another()

    def _fresh_args(self) -> list[Any]:
        return [for_task(arg, self._task) for arg in self._args]


def streams_in(args: Any) -> list[Stream]:
    """The streams among arguments, also in lists."""
    found: list[Stream] = []
    for arg in args:
        if type(arg) is Stream:
            found.append(arg)
        elif type(arg) is list:
            found += [item for item in arg if type(item) is Stream]
    return found


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
        time.sleep(PROBE_S)
        took_s = time.perf_counter() - began_s
        late += took_s - queued_s() > LATE_S
        if late * 2 <= probe or all(source.flow.over for source in sources):
            return False
    return late * 2 > PROBES


def _go_on(sources: list[Source]) -> bool:
    """Whether somebody still makes one of these after a moment: a process takes longer to start."""
    for _ in range(5):
        if all(source.flow.over for source in sources):
            return False
        time.sleep(_LOOK_S)
    return True


def _computes(source: Source) -> bool:
    if source.flow.over or source.thread is None:
        return False
    took_s, busy_s = source.used()
    return took_s < _KNOWN_FROM_S or busy_s > _WAITING_BELOW * took_s
