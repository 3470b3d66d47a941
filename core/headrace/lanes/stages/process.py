"""The owner's side of a stage process.

One thread, that of the stage's slot, receives what the process makes; one more for each input takes what is there of it
and sends it when asked. Items are pickled once, in batches.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import headrace
from headrace import companions
from headrace.errors import UnpicklableError
from headrace.lanes.processes.failures import revive_failure
from headrace.lanes.processes.launcher import interpreter_flags, worker_environment
from headrace.lanes.processes.surroundings import directory
from headrace.lanes.stages import frames
from headrace.lanes.stages.frames import Frames, Input
from headrace.obituary import describe_exit
from headrace.store.hashes import forbid_hash
from headrace.store.pickling import pack
from headrace.stream.handle import Stream

_BOOTSTRAP: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p] + [sys.argv[1]]; "
    "from headrace.lanes.stages.helper import main; main(*map(int, sys.argv[2:5]))"
)
_BATCH_BYTES: Final = 4 << 20
_END_WITHIN_S: Final = 1.0


class LostError(Exception):
    """The process has died."""


class UnfitError(Exception):
    """The stage can only run in the owner's process."""


class StageProcess:
    """A process that runs one stage at a time; for one thread, except :meth:`kill`."""

    def __init__(self, buffer_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        life_read, self._life = os.pipe2(os.O_CLOEXEC)
        root = str(Path(headrace.__file__).parent.parent)
        numbers = [str(number) for number in (theirs.fileno(), life_read, buffer_bytes)]
        self._process = subprocess.Popen(
            [sys.executable, *interpreter_flags(), "-c", _BOOTSTRAP, root, *numbers],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), life_read),
            start_new_session=True,
            env=worker_environment(os.environ.copy()),
        )
        theirs.close()
        os.close(life_read)
        self._channel = Frames(ours)
        self.ready = False
        self._unfit = False
        self._calls = 0

    def wait_until_ready(self, timeout_s: float) -> bool:
        """Whether it is up, after at most this time.

        Raises:
            LostError: it never will be.
        """
        if not self.ready and self._channel.readable(timeout_s):
            self._receive()
            self.ready = True
        return self.ready

    def run(
        self, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any] | None, feeding: Callable[[int, bool], object]
    ) -> tuple[bool, Any]:
        """Calls ``fn`` there. Blocks until it has returned.

        Args:
            args: with streams, also in lists; these are fed.
            feeding: called in each thread that feeds one, with its number, when it begins and when it ends.

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
                forbid_hash(part)
            call = pack((fn, _without_streams(args, streams), kwargs))
            states = companions.states()
            path = [p for p in sys.path if type(p) is str]
            buffers = [pickle.PickleBuffer(buffer) for buffer in call.buffers]
            self._calls += 1
            whole = pack((frames.CALL, path, directory(), states, len(streams), self._calls, call.data, buffers))
        except UnpicklableError as error:
            raise UnfitError(str(error)) from error
        feeders = [
            _Feeder(stream, (self._calls, number), self._channel, self._give_up, feeding)
            for number, stream in enumerate(streams)
        ]
        kind = -1
        try:
            self._send(whole)
            kind, rest = self._serve(feeders)
        finally:
            if kind != frames.STREAM:
                for feeder in feeders:
                    feeder.stop()
        return (True, self._items(feeders)) if kind == frames.STREAM else (False, rest[0])

    def _items(self, feeders: list[_Feeder]) -> Iterator[Any]:
        ended = False
        try:
            while True:
                kind, rest = self._serve(feeders)
                if kind == frames.ENDED:
                    ended = True
                    return
                yield from rest[0]
        except GeneratorExit:
            ended = self._stop(feeders)
            raise
        finally:
            for feeder in feeders:
                feeder.stop()
            if not ended:
                self.kill()

    def _stop(self, feeders: list[_Feeder]) -> bool:
        """Nobody wants the rest: has the generator closed; whether that has worked."""
        try:
            self._channel.send(frames.STOP)
            while self._channel.readable(_END_WITHIN_S):
                if self._receive()[0] in (frames.ENDED, frames.FAILED, frames.UNFIT):
                    return True
        except (LostError, OSError):
            pass
        return False

    def _serve(self, feeders: list[_Feeder]) -> tuple[int, list[Any]]:
        """Receives until there is something for the caller."""
        while True:
            kind, *rest = self._receive()
            if kind == frames.MORE:
                feeders[rest[0]].ask()
            elif kind == frames.FAILED:
                raise revive_failure(rest[0])
            elif kind == frames.UNFIT:
                raise UnfitError(rest[0])
            else:
                return kind, rest

    def _send(self, packed: Any) -> None:
        try:
            self._channel.send_packed(packed)
        except OSError as error:
            raise LostError(self.reason()) from error

    def _receive(self) -> Any:
        try:
            return self._channel.receive()
        except EOFError:
            pass
        if self._unfit:
            raise UnfitError("an input cannot be pickled")
        raise LostError(self.reason())

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
        for send in (os.killpg, os.kill):
            try:
                send(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Ends it and lets go of everything."""
        self.kill()
        self._process.wait()
        self._channel.close()
        if self._life >= 0:
            os.close(self._life)
            self._life = -1


class _Feeder:
    """Sends an input's items, a batch whenever it is asked; its thread starts with the first request."""

    def __init__(
        self,
        stream: Stream,
        number: tuple[int, int],
        channel: Frames,
        give_up: Callable[[], None],
        feeding: Callable[[int, bool], object],
    ) -> None:
        self._stream = stream
        self._number = number
        self._channel = channel
        self._give_up = give_up
        self._feeding = feeding
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        self._asked.put(True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="headrace-feeder", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._asked.put(False)
        self._stream.abandon()

    def _run(self) -> None:
        self._feeding(threading.get_ident(), True)
        try:
            items = self._stream.batches(_BATCH_BYTES)
            end: Any = None
            while end is None and self._asked.get() and not self._stopped:
                batch: list[Any] = []
                try:
                    batch = next(items, [])
                    end = None if batch else True
                except BaseException as error:
                    end = error
                if not self._stopped:
                    self._channel.send(frames.BATCH, *self._number, batch, end)
        except UnpicklableError:
            self._give_up()
        except OSError:
            pass  # the process is gone; whoever receives from it knows
        finally:
            self._feeding(threading.get_ident(), False)
            self._stream.close()


def _without_streams(args: Any, streams: list[Stream]) -> list[Any]:
    def replaced(arg: Any) -> Any:
        if type(arg) is Stream:
            streams.append(arg)
            return Input(len(streams) - 1)
        if type(arg) is list and any(type(item) is Stream for item in arg):
            return [replaced(item) for item in arg]
        return arg

    return [replaced(arg) for arg in args]
