"""The items of one stream, the thread that makes them, and those that read them.

::

    generator ── step ──► tail ── sealed: a chunk ──► kept chunks ── index by index ──► any number of readers
                           │                              ▲
                     (somebody waits?) ring          Flow decides what goes, and whether the producer waits

Two ways to make items. *Pumped*: a thread of its own (the one that ran the task) steps the generator, and readers wait.
*Pulled*: whoever reads takes the generator a step further when there is nothing else to read.

What is there, and who may read it: see ``kept``.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, Protocol

from headrace.errors import StreamError
from headrace.store.pickling import register_reducer
from headrace.store.schedstat import schedstat_s
from headrace.store.sizes import weigh
from headrace.stream.handle import NOBODY, Stream, reduce_if_kept
from headrace.stream.kept import Claim, Kept, Remote, brought
from headrace.stream.resuming import Attempt, MadeAgain, OutdatedError
from headrace.stream.steps import close_steps

LONG_S: Final = 0.03
"""After a wait of this length it is looked whether everybody waits in a circle."""
MOST_PATIENCE_S: Final = 2.0
CHUNK_BYTES: Final = 64 * 1024
CHUNK_ITEMS: Final = 1024
YIELD_EVERY_S: Final = 0.005
"""A producer that holds the GIL lets readers have it as often as Python itself would, but at the moment that they need
it."""

_SMALL: Final = frozenset({int, float, bool, type(None), complex})
_SMALL_BYTES: Final = 32

_CANCELLED: Final = -2


class Bell(Protocol):
    """Wakes one who waits: a queue, where that is a thread."""

    def put(self, item: None, /) -> object:
        """Rings. In any thread."""
        ...


class Surroundings(Protocol):
    """What a source asks of whoever runs it."""

    waiting: dict[int, tuple[Source, int]]
    """Thread → the source that it waits to read from, and the task that it does so for, or ``NOBODY``."""

    def about_to_wait(self) -> None:
        """The current thread will wait for a reader or a producer."""
        ...

    def waited_long(self, source: Source) -> None:
        """The current thread waits for this source's items, or for its readers, and has for some time."""
        ...


class Source(Kept):
    """One stream. Thread-safe.

    Args:
        name: for messages.
        budget_bytes: see :class:`headrace.stream.machine.Flow`.
        surroundings: of a pumped source.
        steps: of a pulled source: what its readers step.
        again: makes a fresh iterator over the same items.
    """

    def __init__(
        self,
        name: str,
        budget_bytes: int,
        surroundings: Surroundings | None = None,
        steps: Iterator[Any] | None = None,
        again: Callable[[], Iterator[Any]] | None = None,
    ) -> None:
        super().__init__(name, budget_bytes)
        self.thread: int | None = None
        """The thread that pumps."""
        self.waited_s = 0.0
        """How long the producer was out of credit."""
        self.surroundings = surroundings
        self._steps = steps
        self._again = again
        self._stepping = threading.RLock()
        self._tail_bytes = 0
        self._chunk_bytes = max(1, min(CHUNK_BYTES, budget_bytes // 4))
        self._bells: deque[Bell] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()  # the producer's
        self._out_of_credit = False
        self._yielded_s = 0.0
        self._began_s = 0.0
        self._native_thread = 0
        self._busy_s = 0.0

    # ---- producing

    def pump(self, steps: Iterator[Any], opened: Callable[[], object]) -> None:
        """Makes all items, in this thread, until the end or until nobody wants any more.

        Args:
            steps: what is stepped; its ``close()`` is called if it has one.
            opened: called once, when the first item, the end or the failure is there.
        """
        self.thread = threading.get_ident()
        self._native_thread = threading.get_native_id()
        self._began_s, self._busy_s = time.perf_counter(), self._busy_so_far_s()
        error: BaseException | None = None
        pending = [opened]
        again: Iterator[Any] | None = steps
        while again is not None:
            steps, again = again, None
            try:
                self._pump(steps, pending)
            except MadeAgain as made_again:
                again = made_again.steps
                self._begin_again()
                self._ring()
            except BaseException as raised:  # whatever it is, readers get it
                error = raised
        try:
            close_steps(steps)
        except BaseException as raised:
            error = error or raised
        self._end(error)
        self.thread = None
        if pending:
            opened()

    def _pump(self, steps: Iterator[Any], pending: list[Callable[[], object]]) -> None:
        tail, size, bells, gone, most = self._tail, 0, self._bells, self._gone, self._chunk_bytes
        for item in steps:
            tail.append(item)
            size += _SMALL_BYTES if type(item) in _SMALL else weigh(item)
            if pending:
                pending.pop()()
            if bells:
                self._ring()
                self._let_others_run()
            if gone and self._is_unwanted():
                return
            if size >= most or len(tail) >= CHUNK_ITEMS:
                tail, size = self._seal(size), 0
                del item  # it may be large, and the next one takes its time
                self._ring()
                if self.flow.paused and not self._wait_for_credit():
                    return

    def _end(self, error: BaseException | None) -> None:
        self._close(error, _of_user(error))
        if self.flow.complete and not self._stopped:
            self._again = None
        self._ring()

    def _is_unwanted(self) -> bool:
        """Whether to stop, now that somebody has left."""
        with self._lock:
            dropped = self._settle()
            stop = self.error is not None or self.flow.unwanted
            self._stopped = stop
        del dropped
        return stop

    def _wait_for_credit(self) -> bool:
        """Waits until somebody has read; whether to go on."""
        self._out_of_credit = True
        began_s = time.perf_counter()
        try:
            while True:
                if self._is_unwanted():
                    return False
                if not self.flow.paused:
                    return True
                self._wait(self._bell)
        finally:
            self._out_of_credit = False
            self.waited_s += time.perf_counter() - began_s

    def _let_others_run(self) -> None:
        now = time.perf_counter()
        if now - self._yielded_s > YIELD_EVERY_S:
            time.sleep(1e-6)  # lets go of the GIL
            self._yielded_s = time.perf_counter()

    def used(self) -> tuple[float, float]:
        """For how many seconds the producer has been at work, and for how many of these it computed, or was ready to
        and had no core."""
        took_s = time.perf_counter() - self._began_s - self.waited_s
        return took_s, self._busy_so_far_s() - self._busy_s

    def _busy_so_far_s(self) -> float:
        return sum(schedstat_s(f"self/task/{self._native_thread}"))

    @property
    def out_of_credit(self) -> bool:
        """Whether its producer waits for readers."""
        return self._out_of_credit and self.flow.paused

    def holders(self) -> tuple[list[int], list[int]]:
        """While it is out of credit: the threads of the readers that must go on, and the tasks that must begin."""
        with self._lock:
            dropped = self._settle()
            slow, tasks = self.flow.holders()
            threads = [self.readers[reader][1] for reader in slow if reader in self.readers]
        del dropped
        return threads, tasks

    def grow(self) -> None:
        """Lets the producer go on: nobody can read before it does."""
        with self._lock:
            self.flow.grow()
        self._bell.put(None)

    def cancel(self, error: BaseException) -> None:
        """Ends the stream: readers get the error with the next chunk; the producer stops at its next item."""
        if self._close(error, None, stopped=True):
            self.reader_gone(_CANCELLED)
            self._ring()

    # ---- pulling

    def _pull(self) -> None:
        """Takes the generator one step further in this thread, unless somebody else has ended it."""
        with self._stepping:
            steps = self._steps
            if self.flow.over or steps is None:
                return
            try:
                item = next(steps)
            except StopIteration:
                self._steps = None
                self._end(None)
            except BaseException as error:
                self._steps = None  # whatever it is, readers get it
                self._end(error)
            else:
                self._tail.append(item)
                self._tail_bytes += _SMALL_BYTES if type(item) in _SMALL else weigh(item)
                if self._tail_bytes >= self._chunk_bytes or len(self._tail) >= CHUNK_ITEMS:
                    self._seal(self._tail_bytes)
                    self._tail_bytes = 0
                    self._ring()

    # ---- reading

    def read(
        self,
        claim: Claim | None,
        consumer: int,
        remote: bool = False,
        attempt: Attempt | None = None,
        new_bell: Callable[[], Bell] | None = None,
    ) -> Iterator[Any]:
        """All items from the start. Blocks for those that are not there yet, in the thread that iterates.

        Args:
            claim: a place at the start, held since before; else one is looked for when the iteration begins.
            consumer: the task that reads, or ``NOBODY``.
            remote: what is in another process may stay there, as :class:`headrace.stream.kept.Remote`.
            attempt: the only one that is to be read; without it, the next one is read from where the last one was left.
            new_bell: who iterates must not be blocked: instead, there is a bell among the items, to be waited for.

        Raises:
            OutdatedError: there is another attempt.
        """
        claim = claim or self.claim(consumer)
        number = count = skip = 0
        present = self.enter(attempt)
        if claim is not None:
            self.readers[claim.reader] = consumer, threading.get_ident()
        while claim is not None:
            chunk = self._chunks.get(number)
            if present != self.attempt:
                present = self.enter(attempt)
                skip, number, count = skip + count, 0, 0
                continue
            if chunk is None:
                break  # it was taken for gone
            index = 0
            while present == self.attempt:
                if skip:
                    some = min(skip, len(chunk) - index)
                    index, skip = index + some, skip - some
                else:
                    while index < len(chunk):
                        if type(chunk[index]) is Remote and not remote:
                            yield chunk[index].brings()
                        else:
                            yield chunk[index]
                        index += 1
                if number < self.flow.next:
                    if self._stopped:
                        self._raise()
                    if index == len(chunk):
                        break
                elif self.flow.over:
                    if index == len(chunk) and present == self.attempt:
                        self._raise()
                        if skip:
                            raise StreamError(
                                f"stream {self.name} was made again, and is shorter than it was: what makes it must "
                                "yield as many items each time"
                            )
                        return
                elif new_bell is None or self._steps is not None:
                    self._more(chunk, index, number, consumer)
                elif self._none_yet(bell := new_bell(), chunk, index, number):
                    yield bell
            count += index
            number += 1
            self._advance(claim.reader, number, present)
        for item in itertools.islice(self.replay(), count + skip, None):
            yield item if remote else brought(item)

    def enter(self, attempt: Attempt | None) -> int:
        """The number of the present attempt, which is about to be read.

        Raises:
            OutdatedError: another one was read before.
        """
        if attempt is not None and not attempt.covers(self.attempt):
            attempt.outdated = True
            attempt.claim = attempt.claim or self.claim(NOBODY)
            if attempt.claim is not None:
                self.readers[attempt.claim.reader] = NOBODY, attempt.thread
            raise OutdatedError(f"stream {self.name} is made again, and is to be read again")
        return self.attempt

    def _more(self, chunk: list[Any], index: int, number: int, consumer: int) -> None:
        """Returns when there may be more than these items of this chunk."""
        if self._steps is not None:
            self._pull()
            return
        bell: SimpleQueue[None] = SimpleQueue()
        if self._none_yet(bell, chunk, index, number):
            self._wait_to_read(bell, consumer)

    def _none_yet(self, bell: Bell, chunk: list[Any], index: int, number: int) -> bool:
        """Whether there are no more than these items of this chunk yet; if so, the bell will be rung."""
        self._bells.append(bell)
        # Looked at again now: what came before saw nobody waiting.
        return index == len(chunk) and number == self.flow.next and not self.flow.over

    def _wait_to_read(self, bell: SimpleQueue[None], consumer: int) -> None:
        assert self.surroundings is not None
        waiting, thread = self.surroundings.waiting, threading.get_ident()
        waiting[thread] = self, consumer
        try:
            self._wait(bell)
        finally:
            waiting.pop(thread, None)

    def _wait(self, bell: SimpleQueue[None]) -> None:
        assert self.surroundings is not None
        self.surroundings.about_to_wait()
        patience_s = LONG_S
        while True:
            try:
                bell.get(timeout=patience_s)
                return
            except Empty:
                self.surroundings.waited_long(self)
                # A circle may close later, by a stage process that nobody here sees waiting.
                patience_s = min(2.0 * patience_s, MOST_PATIENCE_S)

    def _ring(self) -> None:
        bells = self._bells
        while bells:
            bells.popleft().put(None)

    def _advance(self, reader: int, chunk: int, attempt: int) -> None:
        with self._lock:
            dropped = self._settle()
            if attempt == self.attempt:
                dropped += self._drop(self.flow.advanced(reader, chunk))
        self._wake_producer()
        del dropped

    def _wake_producer(self) -> None:
        if self._out_of_credit and not self.flow.paused:
            self._bell.put(None)

    def replay(self) -> Iterator[Any]:
        """The items once more, made anew in the thread that iterates.

        Raises:
            StreamError: that is not possible, or the stream was cancelled.
        """
        if self._stopped:
            self._raise()
        if self._again is None:
            raise StreamError(
                f"the beginning of stream {self.name} is not kept any more, and what made it cannot be run again: "
                "read it once, let it fit stream_buffer_bytes, or return a list"
            )
        return self._again()

    def wait(self, items: float, consumer: int) -> int:
        """Waits until there are so many items, or the end. Whatever is made meanwhile is kept.

        Returns:
            How many there are.

        Raises:
            BaseException: the producer's, if it failed before.
        """
        if self._stopped and self.error is None:
            return sum(1 for _ in self.replay())
        with self._lock:
            self.flow.hurry += 1
        self._wake_producer()
        try:
            while (count := self.count) < items and not self.flow.over:
                if self._steps is not None:
                    self._pull()
                    continue
                bell: SimpleQueue[None] = SimpleQueue()
                self._bells.append(bell)
                if count == self.count and not self.flow.over:
                    self._wait_to_read(bell, consumer)
        finally:
            with self._lock:
                self.flow.hurry -= 1
        if self.count < items:
            self._raise()
        return self.count

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error.with_traceback(self._traceback)

    def item(self, index: int) -> Any:
        """One item; it must have been made."""
        kept: Iterable[Any] = self._kept_item(index) or itertools.islice(self.replay(), index, None)
        return brought(next(iter(kept)))

    def everything(self) -> list[Any] | None:
        """All items, if they are made and kept."""
        items = self._kept_items()
        return None if items is None else [brought(item) for item in items]

    def _left(self) -> None:
        if self._out_of_credit:
            self._bell.put(None)

    @classmethod
    def of_items(cls, name: str, items: list[Any], error: BaseException | None) -> Source:
        """A stream that has ended."""
        source = cls(name, 1)
        source._tail.extend(items)
        source.error = error
        source.flow.ended()
        return source


def _of_user(error: BaseException | None) -> TracebackType | None:
    """Where it was raised, without the frames of this module."""
    frame = None if error is None else error.__traceback__
    while frame is not None and frame.tb_frame.f_globals.get("__name__") == __name__:
        frame = frame.tb_next
    return frame


register_reducer(Stream, reduce_if_kept)  # here, because most programs have no stream, and pickle faster without it
