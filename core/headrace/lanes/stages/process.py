"""The owner's side of a stage process.

One thread, that of the stage's slot, receives what the process makes; one more for each input (``feeder``) takes what
is there of it and sends it when asked. Small items are pickled in batches, large ones are in shared memory
(``exchange``).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from headrace import companions
from headrace.errors import UnpicklableError
from headrace.lanes.processes import launcher, logged, warned  # noqa: F401 - two have their say in stage processes
from headrace.lanes.processes.failures import describe_failure, must_stay, revive_failure
from headrace.lanes.processes.parcels import Parcel, is_shared
from headrace.lanes.processes.surroundings import directory
from headrace.lanes.stages import frames
from headrace.lanes.stages.exchange import Exchange
from headrace.lanes.stages.feeder import Inputs, Target
from headrace.lanes.stages.frames import Frames, Input, Large
from headrace.obituary import describe_exit
from headrace.store.pickling import pack
from headrace.store.unfinished import forbid_unfinished
from headrace.stream.handle import Stream
from headrace.stream.kept import brought

_HELPER: Final = "headrace.lanes.stages.helper"
_END_WITHIN_S: Final = 1.0
_LAST: Final = frozenset({frames.VALUE, frames.ENDED, frames.FAILED, frames.UNFIT})
"""What a process says last about a call."""


class LostError(Exception):
    """The process has died."""


class UnfitError(Exception):
    """The stage can only run in the owner's process.

    Attributes:
        stays: None, or if something could not be pickled, whether that must not be.
    """

    def __init__(self, message: str, stays: bool | None = None) -> None:
        super().__init__(message)
        self.stays = stays


class StageProcess:
    """A process that runs one stage at a time; for one thread, except :meth:`kill`.

    Args:
        buffer_bytes: of each of its inputs.
        exchange: of the large items.

    Raises:
        OSError: no process or no descriptor is left.
    """

    def __init__(self, buffer_bytes: int, exchange: Exchange) -> None:
        ours, theirs = socket.socketpair()
        life_read, self._life = os.pipe2(os.O_CLOEXEC)
        place = exchange.new_place()
        environment = launcher.worker_environment(os.environ.copy())
        try:
            self._process = launcher.execute(_HELPER, (theirs.fileno(), life_read), (buffer_bytes, place), environment)
        except BaseException:  # nobody will call close()
            ours.close()
            os.close(self._life)
            exchange.lost(place)
            raise
        finally:
            theirs.close()
            os.close(life_read)
        self._channel = Frames(ours)
        self._exchange = exchange
        self._place = place
        self._attached = {place}
        self._attaching = threading.Lock()
        self.ready = False
        self.busy = False
        """Whether a call runs there: it has not said that it is over."""
        self._unfit = False
        self._calls = 0

    def wait_until_ready(self, timeout_s: float, unless: int = -1) -> bool:
        """Whether it is up, after at most this time, or less if this descriptor becomes readable before.

        Raises:
            LostError: it never will be.
        """
        if not self.ready and self._channel.readable(timeout_s, unless):
            self._receive()
            self.ready = True
        return self.ready

    def run(self, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any] | None, inputs: Inputs) -> tuple[bool, Any]:
        """Calls ``fn`` there. Blocks until it has returned.

        Args:
            args: with streams, also in lists; these are fed.
            inputs: what feeds them; for the caller to stop when it has what it wants.

        Returns:
            Whether it makes a stream, and an iterator over that; or its value.

        Raises:
            UnfitError: it cannot run there.
            LostError: the process has died.
            BaseException: what the call raises.
        """
        streams: list[Stream] = []
        try:
            for part in (fn, *args[:1]):  # the call may be that of another function
                forbid_unfinished(part)
            call = self._exchange.lend(pack((fn, _without_streams(args, streams), kwargs), called=True), self._place)
        except UnpicklableError as error:
            raise UnfitError(str(error), must_stay(error)) from error
        self._calls += 1
        path = [p for p in sys.path if type(p) is str]
        targets = [Target((self._calls, number), self._send_items, self._give_up) for number in range(len(streams))]
        start = inputs.connect(streams, targets)
        self._show(call)
        self.busy = True
        self._send(frames.CALL, path, directory(), companions.states(), len(streams), self._calls, start, call)
        inputs.called()
        kind, rest = self._serve(inputs)
        return (True, self._items(inputs)) if kind == frames.STREAM else (False, rest[0])

    def _items(self, inputs: Inputs) -> Iterator[Any]:
        try:
            while True:
                kind, rest = self._serve(inputs)
                if kind == frames.ENDED:
                    return
                items, large_bytes, progress = rest
                items.reverse()
                while items:
                    yield items.pop()  # none of them is kept here
                inputs.came_to(progress)
                if large_bytes:
                    self._send(frames.TAKEN, large_bytes, self._exchange.free_ranges(self._place))
        except GeneratorExit:
            self._stop()
            raise

    def _stop(self) -> None:
        """Nobody wants the rest: has the generator closed, if that does not take long."""
        try:
            self._channel.send(frames.STOP)
            while self._channel.readable(_END_WITHIN_S):
                if self._receive()[0] in _LAST:
                    self.busy = False
                    return
        except (LostError, UnfitError, OSError):
            pass  # it is not given back, but ended

    def _serve(self, inputs: Inputs) -> tuple[int, list[Any]]:
        """Receives until there is something for the caller."""
        while True:
            kind, rest = self._receive()
            self.busy = kind not in _LAST
            if kind == frames.MORE:
                inputs.ask(*rest)
            elif kind == frames.CAME:
                inputs.came_to(rest[0])
            elif kind == frames.FAILED:
                raise revive_failure(rest[0])
            elif kind == frames.UNFIT:
                raise UnfitError(*rest)
            elif kind not in (frames.ARENA, frames.CLOSED, frames.SAID):
                return kind, rest

    def _send(self, *message: Any) -> None:
        try:
            self._channel.send(*message)
        except OSError as error:
            raise LostError(self.reason()) from error

    def _send_items(self, number: tuple[int, int], items: list[tuple[Any, int]], end: Any) -> None:
        """Sends a part of an input, with how many bytes each item takes."""
        sent = [
            self._exchange.send_on(item, size, self._place) if size >= frames.LARGE_BYTES else item
            for item, size in items
        ]
        for item in sent:
            if type(item) is Large:
                self._show(item.parcel)
        end = describe_failure(end) if isinstance(end, BaseException) else end
        self._channel.send(frames.BATCH, *number, sent, end)

    def _show(self, parcel: Parcel) -> None:
        """The process gets to know the memory that this is in."""
        if is_shared(parcel) and parcel[1] not in self._attached:
            place = parcel[1]
            with self._attaching:  # whoever comes second must not overtake the descriptor
                if place not in self._attached:
                    self._channel.send(frames.ATTACH, place, descriptors=(self._exchange.descriptor(place),))
                    self._attached.add(place)

    def detach(self, place: int) -> None:
        """Nothing in this memory will be read any more. Thread-safe."""
        with self._attaching:
            if place in self._attached:
                self._attached.discard(place)
                try:
                    self._channel.send(frames.DETACH, place)
                except OSError:
                    pass  # it is gone

    def tend(self) -> None:
        """While it has nothing to do: hears what it does not read any more, and says what it can write again."""
        try:
            while self.ready and self._channel.readable(0.0):
                self._receive()
            free = self._exchange.free_ranges(self._place)
            if free:
                self._send(frames.TAKEN, 0, free)
        except LostError:
            pass  # whoever takes it finds out

    def _receive(self) -> tuple[int, list[Any]]:
        """The next message, with what its large items are here."""
        try:
            kind, closed, *rest = self._channel.receive()
        except EOFError:
            if self._unfit:
                raise UnfitError("an input cannot be pickled") from None
            raise LostError(self.reason()) from None
        except UnpicklableError as error:
            raise UnfitError(str(error), stays=False) from error
        if closed:
            self._exchange.closed(self._place, closed)
        if kind == frames.ARENA:
            self._exchange.attach(self._place, self._channel.descriptors.popleft())
        elif kind == frames.SAID:
            companions.hear(*rest)
        elif kind == frames.BATCH:
            rest[0] = [self._exchange.receive(item, self._place) if type(item) is Large else item for item in rest[0]]
        elif kind == frames.VALUE:
            rest[0] = brought(self._exchange.receive(rest[0], self._place))
        return kind, rest

    def _give_up(self) -> None:
        self._unfit = True
        self.kill()

    def reason(self) -> str:
        """How it ended; it must be about to."""
        try:
            self._process.wait(_END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()
        return describe_exit(self._process.wait())

    def kill(self) -> None:
        """Ends it, now. Thread-safe."""
        launcher.kill(self._process.pid)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def forget_in_child(self) -> None:
        """In a forked child of the owner: lets go of the connection without a word, so not by closing the channel."""
        self._process.returncode = 0  # it is not ours to wait for
        self._channel.socket.close()
        self._close_descriptors()

    def close(self) -> None:
        """Ends it and lets go of everything."""
        self.kill()
        self._process.wait()
        self._channel.close()
        self._close_descriptors()
        self._exchange.lost(self._place)

    def _close_descriptors(self) -> None:
        for descriptor in self._channel.descriptors:
            os.close(descriptor)
        self._channel.descriptors.clear()
        if self._life >= 0:
            os.close(self._life)
            self._life = -1


def _without_streams(args: Any, streams: list[Stream]) -> list[Any]:
    """The same arguments, with an :class:`Input` in the place of each stream, which is added to ``streams``."""
    replaced = []
    for arg in args:
        if type(arg) is Stream:
            streams.append(arg)
            arg = Input(len(streams) - 1)
        elif type(arg) is list and any(type(item) is Stream for item in arg):
            arg = _without_streams(arg, streams)
        replaced.append(arg)
    return replaced
