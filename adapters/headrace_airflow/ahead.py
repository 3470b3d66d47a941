"""A consumer's function before its task has started: the process that runs it, and the task that takes what it made.

    feeding task ══spool, doorbell══▶ process ahead ──began, done + value + log──▶ its task

Both are forks of one zygote, so they have the same code. The process has no supervisor and no token: where its function
asks for anything of Airflow's, it gives up, and the task runs the function itself, as it does after any failure here.
Unless the author has said that it may run ahead, the process is contained (containment.py): it ends rather than do what
others could see. The task takes the value only if the streams that were read are those that it has been given.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from os import _exit  # as it is before a DAG file can put another in its place
from socket import socket
from types import GeneratorType
from typing import Any, Final, NamedTuple, NoReturn

from headrace.store.pickling import pack
from headrace_airflow import absent, candidates, containment, generators, processes, task_logging, wire
from headrace_airflow.items import Gatherer, StreamedItems, in_spool
from headrace_airflow.spool import Reader, Writer, hear
from headrace_airflow.store import image
from headrace_airflow.unpickling import unpickle
from headrace_airflow.wire import Channel, Message
from headrace_airflow.workers import Tell

_READ_BYTES: Final = 1 << 16
STOPPED: Final = 3
"""How a process ends whose function asks for what it cannot have ahead."""


class Feed(NamedTuple):
    """A stream to read: its id, its spool, and the reader's doorbell."""

    id: str
    spool: int
    doorbell: socket


class Announcer:
    """Tells a task's zygote of its stream once that has begun, and lets readers in.

    Args:
        tell: brings a message to the zygote.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._control: Channel | None = None

    def __call__(self, gatherer: Gatherer) -> None:
        if self._control is not None:
            return
        self._control, theirs = wire.pair()
        gatherer.stream.newcomers = self._newcomers
        with theirs:
            self._tell({"t": "stream", "id": gatherer.stream.id}, [gatherer.stream.fd, theirs.fileno()])

    def _newcomers(self) -> list[socket]:
        assert self._control is not None
        return [socket(fileno=fd) for _, fds in self._control.receive() for fd in fds]


# --- the process ahead ---


def run(operator: Any, feeds: Mapping[str, Feed], task: Channel, tell: Tell, first: int | None) -> NoReturn:
    """Runs a consumer's function and leaves its value for the task; never returns.

    Args:
        operator: the consumer.
        feeds: task id → its stream.
        task: what is sent here, the task will find.
        tell: brings a message to the zygote.
        first: the first descriptor that a contained process may use, those of ``task`` and ``tell`` included; ``None``:
            it is not contained.
    """

    def give_up(why: str) -> NoReturn:
        task.send({"t": "failed", "why": why})
        _exit(STOPPED)

    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGSEGV):
            signal.signal(number, signal.SIG_DFL)
        processes.set_title(f"headrace ahead: {operator.dag_id}.{operator.task_id}")
        log, output = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("headrace-log", "headrace-output"))
        _capture(log, output)
        args, kwargs = _arguments(operator, feeds)
        task.send({"t": "began", "at": time.time(), "read": _streams_in([args, kwargs])})
        absent.stand_in(give_up)
        if first is not None:
            _contain(first, give_up)
        unfinished = absent.unfinished()
        made = _make(operator, args, kwargs, tell)
        if first is not None and absent.unfinished() != unfinished:
            give_up("it has left work for later to its process")
        made.send(task, [log, output])
        code = 0
    except containment.CannotContainError as error:
        give_up(str(error))
    except BaseException as error:  # whatever it is, the task runs the function as ever
        task.send({"t": "failed", "why": f"{type(error).__name__}: {error}"})
    finally:
        _exit(code)


def _arguments(operator: Any, feeds: Mapping[str, Feed]) -> tuple[list[Any], dict[str, Any]]:
    def stream_of(task_id: str) -> StreamedItems:
        feed = feeds[task_id]
        for_reading = os.open(f"/proc/self/fd/{feed.spool}", os.O_RDONLY | os.O_CLOEXEC)
        stream = StreamedItems(feed.id, Reader(for_reading, hear(feed.doorbell.dup())))
        os.close(for_reading)
        return stream

    return candidates.arguments(operator, stream_of)


def _contain(first: int, give_up: absent.GiveUp) -> None:
    absent.check_watchers()
    absent.hide_variables(give_up)
    pack([], "")  # what it imports, it cannot import any more
    containment.contain(first)
    containment.tell_what_is_refused(lambda what: give_up(f"it asks for {what}, and its author has not said yes"))


@dataclass(frozen=True, slots=True)
class _Made:
    """What a function has made; in the memory of descriptors, to be sent."""

    packed: Writer
    stream: StreamedItems | None
    """Its value, where that is one."""

    def send(self, task: Channel, logs: list[int]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        stream_id, spool = ("", None) if self.stream is None else (self.stream.id, self.stream.spool)
        fds = [self.packed.fd, *logs, *([] if spool is None else [spool])]
        task.send({"t": "done", "at": time.time(), "stream": stream_id}, fds)
        task.drain(10.0)


def _make(operator: Any, args: list[Any], kwargs: dict[str, Any], tell: Tell) -> _Made:
    metadata: list[Any] = []
    value: Any = generators.keeping(operator.python_callable, Announcer(tell))(*args, **kwargs)
    if isinstance(value, GeneratorType):
        value = generators.exhaust(value, metadata.append)
    stream = value if isinstance(value, StreamedItems) and value.spool is not None else None
    packed = pack((metadata, None if stream is not None else value), operator.task_id)
    made = Writer()
    made.append([memoryview(packed.data), *packed.buffers], 1)
    made.end()
    return _Made(made, stream)


def _capture(log: int, output: int) -> None:
    """Keeps what the function logs and prints for the task's log."""
    from airflow.sdk.execution_time import supervisor

    supervisor._configure_logs_over_json_channel(os.dup(log))
    task_logging.redirect(log)
    for fd in (1, 2):
        os.dup2(output, fd)
    sys.stdout = sys.stderr = open(os.dup(output), "w", buffering=1)  # noqa: SIM115  (as long as the process)


# --- its task ---


@dataclass(frozen=True, slots=True)
class _Taken:
    metadata: list[Any]
    value: Any


class Forerunner:
    """What runs, or has run, ahead of this task.

    Args:
        channel: what the process has sent, and will.
        log_fd: where records of the task's log go.
    """

    def __init__(self, channel: Channel, log_fd: int) -> None:
        self._channel = channel
        self._log_fd = log_fd

    def before(self, function: generators.Function, otherwise: generators.Function) -> generators.Function:
        """A function that gives the value that was made ahead, or else does what ``otherwise`` does."""

        @functools.wraps(function)
        def takes(*args: Any, **kwargs: Any) -> Generator[Any, None, Any]:
            taken = self._take(args, kwargs)
            if taken is None:
                value = otherwise(*args, **kwargs)
                return (yield from value) if isinstance(value, GeneratorType) else value
            yield from taken.metadata
            return taken.value

        return takes

    def _take(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Taken | None:
        log = logging.getLogger("airflow.task.headrace")
        started = time.time()
        began: Message = self._next()
        if began["t"] == "began" and began["read"] != _streams_in([list(args), dict(kwargs)]):
            began = {"t": "failed", "why": "it has read another try of its upstream"}
        done: Message = self._next() if began["t"] == "began" else began
        if done["t"] == "done":
            try:
                taken = self._open(done)
            except Exception as error:  # the value's own unpickling, which may raise anything
                done = {"t": "failed", "why": f"its value cannot be read: {error}"}
            else:
                log.info(
                    "This task was pipelined: its function ran ahead of the task, from %s to %s; "
                    "the task started at %s",
                    *(_clock(at) for at in (began["at"], done["at"], started)),
                )
                return taken
        log.info("What ran ahead of this task is discarded: %s. It runs now", done["why"])
        return None

    def _next(self) -> Message:
        received = self._channel.wait()
        if received is None:
            return {"t": "failed", "why": "its process has ended"}
        message, fds = received
        message["fds"] = fds
        return message

    def _open(self, done: Message) -> _Taken:
        made, log, output, *spool = done["fds"]
        try:
            chunk = Reader(made).chunk(0)
            assert chunk is not None  # it was written before it was sent
            metadata, value = unpickle(image.split(chunk.image))
            if spool:
                value = in_spool(done["stream"], spool[0])
            self._replay(log, output)
        finally:
            for fd in done["fds"]:
                os.close(fd)
        return _Taken(metadata, value)

    def _replay(self, log: int, output: int) -> None:
        """Brings what was logged and printed into the task's log."""
        for source, target in ((log, self._log_fd), (output, sys.stdout.fileno())):
            sys.stdout.flush()
            offset = 0
            while data := os.pread(source, _READ_BYTES, offset):
                offset += len(data)
                view = memoryview(data)
                while view.nbytes:
                    view = view[os.write(target, view) :]


def prepare(forerunner: Forerunner | None, tell: Tell) -> None:
    """In a task: has its function stream, and take what ran ahead of it."""
    generators.announce = Announcer(tell)
    generators.forerun = None if forerunner is None else forerunner.before


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).strftime("%H:%M:%S.%f")[:-3]


def _streams_in(value: Any) -> list[str]:
    """The ids of the streams in the arguments of a function, in their order."""
    if isinstance(value, StreamedItems):
        return [value.id]
    if isinstance(value, (list, tuple)):
        return [id for item in value for id in _streams_in(item)]
    if isinstance(value, dict):
        return [id for _, item in sorted(value.items(), key=lambda pair: str(pair[0])) for id in _streams_in(item)]
    return []
