"""Sends a stage process the items of its inputs, a batch of one whenever it asks for that."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from queue import SimpleQueue
from typing import Any, Final

from headrace.errors import UnpicklableError
from headrace.lanes.stages.frames import BEGINNING, Progress
from headrace.stream.handle import Stream
from headrace.stream.resuming import OutdatedError

_BATCH_BYTES: Final = 4 << 20


class Target:
    """Where a feeder sends to.

    Args:
        number: of the call, and of the input in it.
        send: sends items (with the bytes that each takes) and, with the last of them, the end: True, or an exception.
        give_up: called if an item cannot be sent.
    """

    __slots__ = ("give_up", "number", "send")

    def __init__(
        self,
        number: tuple[int, int],
        send: Callable[[tuple[int, int], list[tuple[Any, int]], Any], object],
        give_up: Callable[[], None],
    ) -> None:
        self.number = number
        self.send = send
        self.give_up = give_up


class Feeder:
    """One input; its thread starts with the first request.

    Args:
        stream: the input.
        target: of the call.
        feeding: called in the thread, with its number, when it begins and when it ends.
        keeps: what was sent is kept until it is said to be finished, to be sent to another call: see :meth:`resume`.
    """

    def __init__(
        self, stream: Stream, target: Target, feeding: Callable[[int, bool], object], keeps: bool = False
    ) -> None:
        self._stream = stream
        self._target = target
        self._feeding = feeding
        self._keeps = keeps
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._sending = threading.Lock()  # by whom it is held, its turn is to send
        self._lock = threading.Lock()  # guards what follows, and the target
        self._items: deque[tuple[Any, int]] = deque()
        self._sent = 0  # so many of them
        self._finished = 0  # so many before them
        self._end: Any = None

    def ask(self) -> None:
        self._asked.put(True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="headrace-feeder", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._asked.put(False)
        self._stream.abandon()

    def finished(self, items: int) -> None:
        """So many items from the start will not be asked for again."""
        with self._lock:
            done = [self._items.popleft() for _ in range(min(items - self._finished, self._sent))]
            self._finished += len(done)
            self._sent -= len(done)
        del done  # outside of the lock: destructors are foreign code

    def resume(self, target: Target) -> None:
        """From now on sends to another call, beginning with what was not finished: that at once.

        The feeder's own thread may be waiting for an item that is not made before these have been read.
        """
        with self._lock:
            self._target, self._sent = target, 0
        if self._has_more():
            self._feed()

    def _run(self) -> None:
        self._feeding(threading.get_ident(), True)
        try:
            batches = self._stream.batches(_BATCH_BYTES)
            while self._asked.get() and not self._stopped:
                if not self._has_more():
                    self._fetch(batches)
                if not self._stopped and self._feed() and not self._keeps:
                    break
        finally:
            self._feeding(threading.get_ident(), False)
            self._stream.close()

    def _has_more(self) -> bool:
        with self._lock:
            return self._sent < len(self._items) or self._end is not None

    def _fetch(self, batches: Iterator[list[tuple[Any, int]]]) -> None:
        batch: list[tuple[Any, int]] = []
        end: Any = None
        try:
            batch = next(batches, [])
            end = None if batch else True
        except OutdatedError as error:
            end = OutdatedError(*error.args)  # the frames of the other one's traceback lead back to this feeder
        except BaseException as error:  # whatever the producer raised, its reader does
            end = error
        with self._lock:
            self._items += batch
            self._end = end

    def _feed(self) -> bool:
        """Sends what is there; whether that was the end."""
        with self._sending:
            target, batch, end = self._next()
            try:
                target.send(target.number, batch, end)
            except UnpicklableError:
                target.give_up()
            except OSError:
                return not self._keeps  # the process is gone; whoever receives from it knows
        return end is not None

    def _next(self) -> tuple[Target, list[tuple[Any, int]], Any]:
        with self._lock:
            batch = list(islice(self._items, self._sent, None))
            if self._keeps:
                self._sent = len(self._items)
            else:
                self._items.clear()  # nobody here needs them while it waits for the next request
            return self._target, batch, self._end


class Inputs:
    """The inputs of a call. If it may be resumed they outlive it, and are connected to the next one.

    For one thread.

    Args:
        feeding: see :class:`Feeder`.
        resumable: the call may go on in another process.
    """

    def __init__(self, feeding: Callable[[int, bool], object], resumable: bool = False) -> None:
        self._feeding = feeding
        self._resumable = resumable
        self._feeders: list[Feeder] = []
        self._resumed: list[Target] = []
        self._progress = BEGINNING
        self._finished = 0  # so many items, when the present call began

    @property
    def can_resume(self) -> bool:
        """Whether another call can go on where the last one was."""
        return self._resumable and len(self._feeders) == 1

    def connect(self, streams: list[Stream], targets: list[Target]) -> Progress | None:
        """There is a call about to begin; returns where: it has asked for no item or one, and yielded so many for it.

        None if it need not say how far it comes.
        """
        if not self._feeders:
            keeps = self._resumable and len(streams) == 1
            self._feeders = [
                Feeder(stream, target, self._feeding, keeps) for stream, target in zip(streams, targets, strict=True)
            ]
            return BEGINNING if keeps else None
        self._resumed = targets
        asked, yielded = self._progress
        self._finished = max(0, asked - 1)
        return min(asked, 1), yielded

    def called(self) -> None:
        """The call has been sent."""
        for feeder, target in zip(self._feeders, self._resumed, strict=False):
            feeder.resume(target)

    def ask(self, number: int, progress: Progress | None) -> None:
        """The call asks for a batch of an input."""
        if progress is not None:
            self.came_to(progress)
        self._feeders[number].ask()

    def came_to(self, progress: Progress) -> None:
        """The call has come so far."""
        if self.can_resume:
            asked, yielded = progress
            self._progress = self._finished + asked, yielded
            self._feeders[0].finished(self._finished + asked - 1)

    def stop(self) -> None:
        """Feeds no more."""
        for feeder in self._feeders:
            feeder.stop()
