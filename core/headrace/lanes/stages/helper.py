"""The main program of a stage process: runs one call after the other, each with streams as inputs.

The main thread runs the call. A second thread receives, so that a batch of each input is always on its way; a third one
sends items that the main thread, stuck in a long step, has left behind.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any, Final, NoReturn

from headrace import companions
from headrace.errors import UnpicklableError, raised_in
from headrace.lanes.processes import warned, worker
from headrace.lanes.processes.failures import describe_failure, must_stay, revive_failure
from headrace.lanes.processes.guard import die_with_owner, kill_own_group
from headrace.lanes.processes.surroundings import flush_output, follow_owner, write_lines_at_once
from headrace.lanes.stages import frames
from headrace.lanes.stages.frames import Frames, Input, Large, Progress
from headrace.lanes.stages.memory import Memory
from headrace.store.sizes import weigh
from headrace.stream.handle import Stream
from headrace.stream.source import Source
from headrace.stream.steps import PRODUCERS, close_steps, steps_of

_FLUSH_S: Final = 0.0005
_REPORT_S: Final = 0.005
_FLUSH_BYTES: Final = 256 * 1024
_NOBODY: Final = -1
_EVERYTHING: Final = 1 << 62


class _Stopped(BaseException):
    """Nobody wants what the call makes."""


class _Unfit(BaseException):
    """The call asks for something that only the owner's process can do."""


def main(socket_fd: int, life_fd: int, buffer_bytes: int, place: int) -> NoReturn:
    """Runs to the end of the owner's connection. The descriptors are inherited."""
    worker.mark()
    companions.install(os.environ)
    for fd in (socket_fd, life_fd):
        os.set_inheritable(fd, False)
    die_with_owner(life_fd, with_thread=False)
    write_lines_at_once()
    Helper(Frames(socket.socket(fileno=socket_fd)), buffer_bytes, place).run()


class Helper:
    """The state of the call at hand, shared by the threads."""

    def __init__(self, channel: Frames, buffer_bytes: int, place: int) -> None:
        self._channel = channel
        self._buffer_bytes = buffer_bytes
        self._memory = Memory(place, lambda fd: self._send(frames.ARENA, descriptors=(fd,)))
        self._calls: SimpleQueue[Any] = SimpleQueue()
        self._inputs: list[SimpleQueue[Any]] = []
        self._stopped = False
        self._unfit: _Unfit | None = None  # even if the call hides it
        self._number = _NOBODY  # of the call
        self._taking = threading.Lock()  # held by whoever decides that a call takes what has come for it
        self._items: list[Any] = []
        self._large_bytes = 0  # of those items
        self._flushing = threading.Lock()
        self._progress = frames.BEGINNING  # changed with those items
        self._resumed = frames.BEGINNING  # up to here, what the call yields was yielded before
        self._reports = False  # whether somebody wants to know the progress
        self._reported_s = 0.0
        self._late: SimpleQueue[None] = SimpleQueue()

    def run(self) -> NoReturn:
        companions.speak_through(self._say)
        warned.divert()
        threading.Thread(target=self._listen, name="headrace-io", daemon=True).start()
        threading.Thread(target=self._flush_late, name="headrace-flush", daemon=True).start()
        self._send(frames.HELLO)
        while True:
            call = self._calls.get()
            try:
                last: tuple[Any, ...] = self._run(*call)
                if self._unfit is not None:
                    last = frames.UNFIT, str(self._unfit), None
                self._let_go()
                kind, *rest = last
                self._send(kind, *rest)
            except OSError:
                kill_own_group()
            del call, last
            flush_output()

    def _send(self, kind: int, *rest: Any, descriptors: Sequence[int] = ()) -> None:
        """Sends a message, and with it what is not read any more."""
        closed = self._memory.take_closed()
        try:
            self._channel.send(kind, closed, *rest, descriptors=descriptors)
        except UnpicklableError:
            self._memory.say_again(closed)
            raise

    def _say(self, companion: str, said: bytes) -> bool:
        if self._number == _NOBODY:
            return False
        self._send(frames.SAID, companion, said)
        return True

    def _let_go(self) -> None:
        """The call is over: nobody will look at what has come for it, or send what it has left."""
        with self._taking:
            self._number = _NOBODY
            for queue in self._inputs:
                while not queue.empty():
                    self._memory.refuse(queue.get()[0])
        with self._flushing:
            self._memory.take_back(self._items)
            self._items, self._large_bytes, self._progress = [], 0, frames.BEGINNING

    # ---- the thread that receives

    def _listen(self) -> None:
        try:
            while True:
                try:
                    kind, *rest = self._channel.receive()
                except UnpicklableError as error:
                    self._unfit = _Unfit(str(error))
                    self._end_inputs(self._unfit)
                else:
                    self._hear(kind, rest)
        except BaseException:  # the owner is gone, or nobody knows any more what it says
            kill_own_group()

    def _hear(self, kind: int, rest: list[Any]) -> None:
        if kind == frames.CALL:
            self._prepare(*rest)
        elif kind == frames.STOP:
            self._stopped = True
            self._memory.taken(_EVERYTHING)
            self._end_inputs(_Stopped())
        elif kind == frames.TAKEN:
            self._memory.free_all(rest[1])
            self._memory.taken(rest[0])
            if self._number == _NOBODY:
                self._memory.trim()
        elif kind == frames.ATTACH:
            self._memory.attach(rest[0], self._channel.descriptors.popleft())
        elif kind == frames.DETACH:
            self._memory.detach(rest[0])
        else:
            self._take(*rest)

    def _end_inputs(self, why: BaseException) -> None:
        for queue in self._inputs:
            queue.put(([], why))

    def _take(self, call: int, number: int, items: list[Any], end: Any) -> None:
        with self._taking:
            if call == self._number:
                self._inputs[number].put((items, end))
                return
        self._memory.refuse(items)
        self._send(frames.CLOSED)

    def _prepare(
        self,
        path: list[str],
        directory: str | None,
        states: Any,
        inputs: int,
        number: int,
        resumed: Progress | None,
        call: Any,
    ) -> None:
        self._stopped, self._unfit = False, None
        self._resumed = resumed or frames.BEGINNING
        self._reports = resumed is not None
        self._number = number
        self._inputs = [SimpleQueue() for _ in range(inputs)]
        self._memory.begin()
        self._calls.put((path, directory, states, call))

    # ---- the thread that runs the call

    def _run(self, path: list[str], directory: str | None, states: Any, call: Any) -> tuple[Any, ...]:
        """Returns the message that is to be the last one of the call."""
        try:
            follow_owner(path, directory)
            companions.follow(states)
            fn, args, kwargs = self._opened(call)
            value = fn(*self._with_inputs(args), **(kwargs or {}))
            if type(value) in PRODUCERS:
                self._send(frames.STREAM)
                self._produce(steps_of(value))
                return (frames.ENDED,)
            return frames.VALUE, self._memory.put(value, weigh(value))
        except _Stopped:
            return (frames.ENDED,)
        except _Unfit as error:
            return frames.UNFIT, str(error), None
        except UnpicklableError as error:
            return frames.UNFIT, str(error), must_stay(error)
        except OSError as error:
            if raised_in(error) == frames.__name__:  # the owner is gone; otherwise the call has opened something
                raise
            return self._failure(error)
        except BaseException as error:
            return self._failure(error)

    def _failure(self, error: BaseException) -> tuple[Any, ...]:
        try:
            self._flush()
        except UnpicklableError as unpicklable:  # before it failed it has made what cannot be sent
            return frames.UNFIT, str(unpicklable), must_stay(unpicklable)
        return frames.FAILED, describe_failure(error, skip_frames=1)

    def _opened(self, call: Any) -> Any:
        try:
            return self._memory.open(call)
        except Exception as error:  # a module that only the owner finds, for example
            raise _Unfit(repr(error)) from error

    def _with_inputs(self, args: Any) -> list[Any]:
        filled = []
        for arg in args:
            if type(arg) is Input:
                arg = self._input(arg.number)
            elif type(arg) is list:
                arg = self._with_inputs(arg)
            filled.append(arg)
        return filled

    def _input(self, number: int) -> Stream:
        return Stream(Source(f"input {number}", self._buffer_bytes, steps=self._items_of(number), again=_not_again))

    def _items_of(self, number: int) -> Iterator[Any]:
        queue = self._inputs[number]
        self._send(frames.MORE, number, None)
        self._ask()
        while True:
            if queue.empty():
                self._flush()
            items, end = queue.get()
            try:
                if self._stopped:
                    raise _Stopped
                if isinstance(end, BaseException):
                    raise end
                if end is None:
                    self._send(frames.MORE, number, self._sent_progress())
                items.reverse()
                while items:
                    item = items.pop()
                    if type(item) is Large:
                        item = self._memory.open(item.parcel)
                    yield item
                    del item  # it is the reader's
                    self._ask()
            finally:
                self._memory.refuse(items)
            if end is True:
                return
            if end is not None:
                raise revive_failure(end)

    def _ask(self) -> None:
        """The call asks for an item, and has finished the one before."""
        self._progress = self._progress[0] + 1, 0
        if self._reports and time.monotonic() - self._reported_s > _REPORT_S:
            self._flush()
            self._send(frames.CAME, self._progress)
            self._reported_s = time.monotonic()

    def _sent_progress(self) -> Progress | None:
        with self._flushing:
            return None if self._items or self._progress < self._resumed else self._progress

    def _produce(self, steps: Any) -> None:
        flushed_s, small_bytes = 0.0, 0
        try:
            for item in steps:
                if self._stopped:
                    raise _Stopped
                asked, yielded = self._progress
                if (asked, yielded) < self._resumed:
                    self._progress = asked, yielded + 1
                    continue
                size = weigh(item)
                if size >= frames.LARGE_BYTES:
                    item = self._memory.put(item, size)
                with self._flushing:  # or it could join a list that has just been sent
                    self._items.append(item)
                    self._progress = asked, yielded + 1
                    self._large_bytes += size if type(item) is Large else 0
                small_bytes += size
                del item
                now = time.monotonic()
                if now - flushed_s > _FLUSH_S or small_bytes > _FLUSH_BYTES:
                    self._flush()
                    flushed_s, small_bytes = now, 0
                elif len(self._items) == 1:
                    self._late.put(None)
        finally:
            close_steps(steps)
        self._flush()

    def _flush(self) -> None:
        with self._flushing:
            if not self._items:
                return
            self._memory.wait_for_credit(self._large_bytes)
            if self._stopped:
                return
            self._send(frames.BATCH, self._items, self._large_bytes, self._progress)
            self._items, self._large_bytes = [], 0

    def _flush_late(self) -> None:
        while True:
            self._late.get()
            time.sleep(_FLUSH_S)  # so that the items of a moment go in one message; a quick call sends them itself
            try:
                self._flush()
            except (OSError, UnpicklableError):
                pass  # the main thread comes to it


def _not_again() -> Iterator[Any]:
    raise _Unfit("an input is read again whose beginning was not kept")
