"""The main program of a stage process: runs one call after the other, each with streams as inputs.

The main thread runs the call. A second thread receives, so that a batch of each input is always on its way; a third one
sends items that the main thread, stuck in a long step, has left behind.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, Final, NoReturn

from headrace import companions
from headrace.errors import UnpicklableError, raised_in
from headrace.lanes.processes import worker
from headrace.lanes.processes.failures import describe_failure
from headrace.lanes.processes.guard import die_with_owner, kill_own_group
from headrace.lanes.processes.surroundings import flush_output, follow_owner, write_lines_at_once
from headrace.lanes.stages import frames
from headrace.lanes.stages.frames import Frames, Input
from headrace.store.pickling import unpack
from headrace.store.sizes import weigh
from headrace.stream.handle import Stream
from headrace.stream.source import Source
from headrace.stream.steps import PRODUCERS, steps_of

_FLUSH_S: Final = 0.0005
_FLUSH_BYTES: Final = 256 * 1024


class _Stopped(BaseException):
    """Nobody wants what the call makes."""


class _Unfit(BaseException):
    """The call asks for something that only the owner's process can do."""


def main(socket_fd: int, life_fd: int, buffer_bytes: int) -> NoReturn:
    """Runs to the end of the owner's connection. The descriptors are inherited."""
    worker.mark()
    companions.install(os.environ)
    for fd in (socket_fd, life_fd):
        os.set_inheritable(fd, False)
    die_with_owner(life_fd, with_thread=False)
    write_lines_at_once()
    Helper(Frames(socket.socket(fileno=socket_fd)), buffer_bytes).run()


class Helper:
    """The state of the call at hand, shared by the threads."""

    def __init__(self, channel: Frames, buffer_bytes: int) -> None:
        self._channel = channel
        self._buffer_bytes = buffer_bytes
        self._calls: SimpleQueue[Any] = SimpleQueue()
        self._inputs: list[SimpleQueue[Any]] = []
        self._stopped = False
        self._number = -1  # of the call
        self._items: list[Any] = []
        self._flushing = threading.Lock()
        self._late: SimpleQueue[None] = SimpleQueue()

    def run(self) -> NoReturn:
        threading.Thread(target=self._listen, name="headrace-io", daemon=True).start()
        threading.Thread(target=self._flush_late, name="headrace-flush", daemon=True).start()
        self._channel.send(frames.HELLO)
        while True:
            call = self._calls.get()
            try:
                self._run(*call)
            except OSError:
                kill_own_group()
            flush_output()

    def _listen(self) -> None:
        try:
            while True:
                kind, *rest = self._channel.receive()
                if kind == frames.CALL:
                    self._prepare(*rest)
                elif kind == frames.STOP:
                    self._stopped = True
                    for queue in self._inputs:
                        queue.put(([], _Stopped()))
                elif rest[0] == self._number:  # and not for a call that is over
                    _, number, items, end = rest
                    self._inputs[number].put((items, end))
        except BaseException:
            kill_own_group()

    def _prepare(
        self, path: list[str], directory: str | None, states: Any, inputs: int, number: int, call: bytes, buffers: Any
    ) -> None:
        self._stopped = False
        self._number = number
        self._inputs = [SimpleQueue() for _ in range(inputs)]
        self._calls.put((path, directory, states, call, buffers))

    def _run(self, path: list[str], directory: str | None, states: Any, call: bytes, buffers: list[Any]) -> None:
        with self._flushing:
            self._items = []
        try:
            follow_owner(path, directory)
            companions.follow(states)
            fn, args, kwargs = _opened(call, buffers)
            value = fn(*self._with_inputs(args), **(kwargs or {}))
            if type(value) in PRODUCERS:
                self._channel.send(frames.STREAM)
                self._produce(steps_of(value))
                self._channel.send(frames.ENDED)
            else:
                self._channel.send(frames.VALUE, value)
        except _Stopped:
            self._channel.send(frames.ENDED)
        except (_Unfit, UnpicklableError) as error:
            self._channel.send(frames.UNFIT, str(error))
        except OSError as error:
            if raised_in(error) == frames.__name__:  # the owner is gone; otherwise the call has opened something
                raise
            self._fail(error)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._flush()
        self._channel.send(frames.FAILED, describe_failure(error, skip_frames=1))

    def _with_inputs(self, args: Any) -> list[Any]:
        def filled(arg: Any) -> Any:
            if type(arg) is Input:
                return self._input(arg.number)
            return [filled(item) for item in arg] if type(arg) is list else arg

        return [filled(arg) for arg in args]

    def _input(self, number: int) -> Stream:
        return Stream(Source(f"input {number}", self._buffer_bytes, steps=self._items_of(number), again=_not_again))

    def _items_of(self, number: int) -> Iterator[Any]:
        queue = self._inputs[number]
        self._channel.send(frames.MORE, number)
        while True:
            if queue.empty():
                self._flush()
            items, end = queue.get()
            if isinstance(end, _Stopped) or self._stopped:
                raise _Stopped
            if end is None:
                self._channel.send(frames.MORE, number)
            yield from items
            if end is not None:
                if isinstance(end, BaseException):
                    raise end
                return

    def _produce(self, steps: Any) -> None:
        flushed_s, size = 0.0, 0
        try:
            for item in steps:
                if self._stopped:
                    raise _Stopped
                with self._flushing:  # or it could join a list that has just been sent
                    self._items.append(item)
                size += weigh(item)
                now = time.monotonic()
                if now - flushed_s > _FLUSH_S or size > _FLUSH_BYTES:
                    self._flush()
                    flushed_s, size = now, 0
                elif len(self._items) == 1:
                    self._late.put(None)
        finally:
            close = getattr(steps, "close", None)
            if close is not None:
                close()
        self._flush()

    def _flush(self) -> None:
        with self._flushing:
            items, self._items = self._items, []
            if items:
                try:
                    self._channel.send(frames.BATCH, items)
                except UnpicklableError:
                    self._items = items  # for the main thread to see
                    raise

    def _flush_late(self) -> None:
        while True:
            self._late.get()
            time.sleep(_FLUSH_S)
            try:
                self._flush()
            except (OSError, UnpicklableError):
                pass  # the main thread comes to it


def _opened(call: bytes, buffers: list[Any]) -> Any:
    try:
        return unpack(call, buffers)
    except Exception as error:  # a module that only the owner finds, for example
        raise _Unfit(repr(error)) from error


def _not_again() -> Iterator[Any]:
    raise _Unfit("an input is read again whose beginning was not kept")
