"""The main program of a worker process.

::

    socket ──► io thread ──► queue ──► main thread: unpickle, run, pickle ──► outbox ──► socket
                  │  values, functions ──► holdings                            ▲
                  └─ publish, revoke, drop: answered while a task runs ────────┘

The io thread also sends what the main thread left in the outbox before a long task, and takes the process down when the
owner is gone. The page says at any time which task is at work, so that the owner knows whom to blame for a death that
leaves no message.

What tasks do to the process stays: a working directory or an environment that a task has changed is not put back,
as it would not be on threads. The owner's own change of directory, ``sys.path`` or environment is followed.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, NoReturn

from headrace import companions
from headrace.errors import UnpicklableError
from headrace.lanes.processes import warned, wire
from headrace.lanes.processes.failures import describe_failure, format_traceback, must_stay
from headrace.lanes.processes.guard import die_with_owner, kill_own_group
from headrace.lanes.processes.holdings import Holdings, NotHereError
from headrace.lanes.processes.meter import Meter
from headrace.lanes.processes.parcels import Parcel, Unopened, is_shared
from headrace.lanes.processes.reloads import load_again
from headrace.lanes.processes.surroundings import (
    flush_output,
    follow_environment,
    follow_owner,
    raise_again,
    write_lines_at_once,
)
from headrace.lanes.processes.wire import Channel, Op, Record
from headrace.store.pickling import estimate_size, pack
from headrace.stream.handle import NOBODY, for_task
from headrace.stream.steps import PRODUCERS

_SEND_EVERY_S: Final = 0.01
_SEND_FROM: Final = 256
_PLAIN_BYTES: Final = 32
_BUSY_MS: Final = 20
_CLOSED_MS: Final = 50
_TRIM_MS: Final = 5000
_NOBODY: Final = -1

_in_worker = False


def in_worker() -> bool:
    """Whether this process is a worker: then Headrace runs nested graphs inline."""
    return _in_worker


def mark() -> None:
    """Has Headrace know that this process is a worker."""
    global _in_worker
    _in_worker = True


def main(socket_fd: int, page_fd: int, life_fd: int, place: int) -> NoReturn:
    """Runs the worker to its end. The descriptors are inherited from the owner (see launcher.py)."""
    mark()
    companions.install(os.environ)
    die_with_owner(life_fd)
    write_lines_at_once()
    channel = Channel(socket.socket(fileno=socket_fd))
    for fd in (socket_fd, life_fd):
        os.set_inheritable(fd, False)
    page = memoryview(mmap.mmap(page_fd, mmap.PAGESIZE)).cast("q")
    os.close(page_fd)
    worker = Worker(channel, page, place)
    worker.start(life_fd)
    worker.run()


class Worker:
    """The two threads' shared state. ``page``: word 0 is the main thread's task + 1, word 1 the io thread's."""

    def __init__(self, channel: Channel, page: memoryview, place: int) -> None:
        self._channel = channel
        self._page = page
        self._small_bytes = 0
        self._holdings = Holdings(place, self._announce_arena)
        self._functions: dict[int, Any] = {}
        self._queue: SimpleQueue[list[Record] | Callable[[], object]] = SimpleQueue()
        self._pending: dict[int, Record] = {}
        self._current = _NOBODY
        self._outbox: deque[Op] = deque()
        self._sending = threading.Lock()
        self._sent_s = 0.0
        self._meter = Meter()
        self._forked = False
        self._handlers: dict[int, Callable[..., None]] = {
            wire.SETUP: self._set_up,
            wire.FUNCTION: self._receive_function,
            wire.VALUE: self._holdings.receive,
            wire.RUN: self._enqueue,
            wire.PUBLISH: self._publish,
            wire.DROP: self._drop,
            wire.REVOKE: self._revoke,
            wire.DETACH: self._holdings.shelf.detach,
            wire.FREE: self._holdings.shelf.free,
            wire.FORGET: self._forget_functions,
            wire.STOP: lambda: self._queue.put(self._stop),
            wire.PREIMPORT: lambda names: self._queue.put(lambda: self._get_ready(names)),
            wire.PLACE: lambda path, directory: self._queue.put(lambda: follow_owner(path, directory)),
            wire.ENVIRON: lambda changed: self._queue.put(lambda: follow_environment(changed)),
            wire.RELOAD: lambda names: self._queue.put(lambda: load_again(names)),
            wire.FOLLOW: lambda states: self._queue.put(lambda: companions.follow(states)),
        }

    def start(self, life_fd: int) -> None:
        """Starts the io thread."""
        os.register_at_fork(after_in_child=lambda: self._leave_child(life_fd))
        companions.speak_through(self._say)
        warned.divert()
        threading.Thread(target=self._listen, name="headrace-io", daemon=True).start()

    def _leave_child(self, life_fd: int) -> None:
        """In a child that a task has forked: it is not a worker, and must not keep the worker's connections open."""
        self._forked = True
        self._channel.close()
        os.close(life_fd)

    # --- the main thread ------------------------------------------------------------------------------------------

    def run(self) -> NoReturn:
        """Runs what comes, for ever."""
        while True:
            try:
                item = self._queue.get_nowait()
            except Empty:
                self._rest()
                item = self._queue.get()
            if isinstance(item, list):
                self._run_batch(item)
            else:
                item()

    def _rest(self) -> None:
        """Nothing to do: sends what is there."""
        self._current = _NOBODY
        self._page[0] = 0
        self._send()

    def _get_ready(self, modules: Sequence[str]) -> None:
        """Imports what the tasks need, then says hello: until then others run what would wait for the imports."""
        for module in modules:
            try:
                importlib.import_module(module)
            except BaseException:
                pass  # a guess of ours that was wrong; the task that needs the module will say so
        self._outbox.append((wire.HELLO,))

    def _run_batch(self, batch: list[Record]) -> None:
        pending, page, outbox = self._pending, self._page, self._outbox
        for record in batch:
            self._current = task = record[0]  # unpacking all of it only for its id would take longer
            # A record that is not there any more was revoked, and its memory given back; the same task may have come
            # again since, or at this very moment: then the new record is run.
            taken = pending.pop(task, None) if pending.get(task) is record else None
            if taken is None:
                continue
            page[0] = task + 1
            self._run_task(taken)
            if len(outbox) >= _SEND_FROM or time.monotonic() - self._sent_s > _SEND_EVERY_S:
                self._send()

    def _run_task(self, record: Record) -> None:
        task, base, number, plain, parcel, holes, wanted = record
        args: Any = plain
        clock = time.monotonic
        came_s = start_s = clock()
        self._meter.begin(came_s)
        kwargs = None
        began = False
        try:
            fn = self._functions[number]
            if type(fn) is Unopened:
                fn = self._open_function(number, fn, parcel)
            if parcel is not None:
                args, kwargs = self._holdings.open(parcel)
                start_s = clock()
            if holes:
                args = self._fill(args, holes, base)
                start_s = clock()
            began = True
            value = fn(*args, **kwargs) if kwargs else fn(*args)
            if type(value) in PRODUCERS:
                self._hand_back(task)
                return
            if self._forked:
                self._end_child()
        except NotHereError:
            self._give_back([task])
            return
        except BaseException as error:  # a task may raise anything, SystemExit included, and the worker goes on
            if self._forked:
                self._end_child(error)
            self._fail(task, error, began)
            return
        end_s = clock()
        cpu_s, width = self._meter.end(start_s, end_s)
        args = kwargs = None  # a result may be large: its inputs go before it is pickled
        if type(value) in wire.PLAIN_TYPES and value == value:  # no NaN
            self._holdings.store(task, value)
            span = (task, start_s, end_s - start_s, cpu_s, width, _PLAIN_BYTES, start_s - came_s)
            self._outbox.append((wire.RAN, span, wire.PLAIN, value))
            return
        self._finish(task, value, wanted, (start_s, end_s - start_s, cpu_s, width), start_s - came_s)

    def _fill(self, args: tuple[Any, ...], holes: Sequence[Any], base: int) -> list[Any]:
        get = self._holdings.get
        filled = list(args)
        for position, source in holes:
            arg = get(base + source) if type(source) is int else [get(base + s) for s in source]
            filled[position] = for_task(arg, NOBODY)
        return filled

    def _open_function(self, number: int, unopened: Unopened, args: Parcel | None) -> Any:
        parcel = unopened.parcel
        try:
            fn = self._holdings.open(parcel)
        except BaseException as error:
            self._holdings.decline(args)
            if is_shared(parcel):
                # Its segment may be free by now. Others stay unopened: a missing module may be there next time.
                self._functions[number] = functools.partial(raise_again, error)
            raise
        self._functions[number] = fn
        return fn

    def _finish(self, task: int, value: Any, wanted: bool, times: tuple[float, ...], unpickle_s: float) -> None:
        """Decides how far a result travels: to the owner, into shared memory, or not at all."""
        before_s = time.monotonic()
        how, sent, size, published = wire.NOTHING, None, estimate_size(value), None
        if wanted or 0 <= size <= self._small_bytes:
            try:
                if wire.is_plain((value,)):
                    how, sent = wire.PLAIN, value
                else:
                    packed = pack(value, "result")
                    size = packed.size_bytes
                    if size <= self._small_bytes:
                        how, sent = wire.PARCELLED, self._holdings.wrap(packed)
                    elif wanted:
                        published = self._holdings.publish_new(task, value, packed)
                    del packed
            except BaseException as error:  # pickling runs users' code, which may raise anything
                if self._forked:
                    self._end_child(error)
                if wanted:
                    self._fail_result(task, error)
                    return
        if published is None:
            self._holdings.store(task, value)
        transfer_s = unpickle_s + time.monotonic() - before_s
        self._outbox.append((wire.RAN, (task, *times, size, transfer_s), how, sent))
        if published is not None:
            self._outbox.append((wire.PUBLISHED, task, *published))

    def _fail(self, task: int, error: BaseException, began: bool = True) -> None:
        self._holdings.expect_no_more((task,))
        self._outbox.append((wire.FAILED, task, describe_failure(error, skip_frames=1), began))

    def _fail_result(self, task: int, error: BaseException) -> None:
        if isinstance(error, UnpicklableError):
            self._holdings.expect_no_more((task,))
            self._outbox.append((wire.UNPICKLABLE, task, str(error), format_traceback(error), must_stay(error)))
        else:
            # Without shared memory for its result (pickling raises other errors) it may run where it needs none.
            self._fail(task, error, began=not isinstance(error, (OSError, MemoryError)))

    def _hand_back(self, task: int) -> None:
        """It makes a stream, and has not begun: that is for a stage process, whose items others read meanwhile."""
        self._holdings.expect_no_more((task,))
        self._outbox.append((wire.STREAMS, task))

    def _give_back(self, tasks: list[int]) -> None:
        self._holdings.expect_no_more(tasks)
        self._outbox.append((wire.REVOKED, tasks))

    def _end_child(self, error: BaseException | None = None) -> NoReturn:
        """A child forked by a task came back out of it: there is nothing here for it to do."""
        if error is not None:
            sys.stderr.write(format_traceback(error))
        flush_output()
        os._exit(error is not None)

    def _stop(self) -> NoReturn:
        self._outbox.append((wire.LEAVING,))
        self._rest()
        atexit._run_exitfuncs()
        flush_output()
        # Not sys.exit: it would wait for threads that tasks have left behind.
        os._exit(0)

    # --- both threads -----------------------------------------------------------------------------------------------

    def _send(self) -> None:
        """Sends everything in the outbox, and which maps are closed."""
        outbox, closed = self._outbox, self._holdings.shelf.closed
        if not outbox and not closed:
            return
        with self._sending:
            ops = [outbox.popleft() for _ in range(len(outbox))]
            if closed:
                ops.append((wire.CLOSED, [closed.popleft() for _ in range(len(closed))]))
            descriptors = []
            for i, op in enumerate(ops):
                if op[0] == wire.ARENA:
                    descriptors.append(op[1])
                    ops[i] = (wire.ARENA,)
            if ops:
                self._channel.send_all(ops, descriptors)
            self._sent_s = time.monotonic()

    def _say(self, companion: str, said: bytes) -> bool:
        if self._current == _NOBODY or self._forked:
            return False
        self._outbox.append((wire.SAID, self._current, companion, said))
        return True

    def _announce_arena(self, fd: int) -> None:
        self._outbox.append((wire.ARENA, fd))

    # --- the io thread ------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        timeout_ms: int | None = None
        try:
            while True:
                if poll.poll(timeout_ms):
                    self._hear()
                else:
                    self._send()
                    if timeout_ms == _TRIM_MS:
                        self._holdings.shelf.trim()
                timeout_ms = self._patience(timeout_ms)
        except BaseException as error:
            # Without this thread the worker is deaf: its death is a message that the owner understands.
            sys.stderr.write(format_traceback(error))
            os.kill(os.getpid(), signal.SIGKILL)

    def _hear(self) -> None:
        ops, ended = self._channel.receive()
        for op, descriptors in ops:
            if op[0] == wire.ATTACH:
                self._holdings.shelf.attach(op[1], descriptors.pop(0))
            else:
                self._handlers[op[0]](*op[1:])
        if ended:
            kill_own_group()

    def _patience(self, before_ms: int | None) -> int | None:
        """How long to wait for the owner before looking at the outbox again."""
        if self._pending or self._current != _NOBODY:
            return _BUSY_MS
        if self._outbox or self._holdings.shelf.closed:
            return _CLOSED_MS
        return None if before_ms in (None, _TRIM_MS) else _TRIM_MS

    def _set_up(self, path: list[str], directory: str | None, small_bytes: int) -> None:
        self._small_bytes = small_bytes
        self._holdings.set_small_bytes(small_bytes)
        follow_owner(path, directory)

    def _receive_function(self, number: int, parcel: Parcel) -> None:
        self._functions[number] = Unopened(parcel)

    def _forget_functions(self, numbers: Sequence[int]) -> None:
        # In the order of the queue: tasks that use them may still be in it.
        self._queue.put(lambda: self._drop_functions(numbers))

    def _drop_functions(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            fn = self._functions.pop(number, None)
            if type(fn) is Unopened:
                self._holdings.decline(fn.parcel)

    def _enqueue(self, records: list[Record]) -> None:
        for record in records:
            self._pending[record[0]] = record
        self._queue.put(records)

    def _publish(self, task: int) -> None:
        self._page[1] = task + 1
        try:
            parcel, reads = self._holdings.publish(task)
            self._outbox.append((wire.PUBLISHED, task, parcel, reads))
        except NotHereError:
            pass  # dropped in the meantime: nobody waits for the answer
        except BaseException as error:  # pickling runs users' code: not even SystemExit may end this thread
            self._holdings.drop((task,), lambda _: False)
            self._fail_result(task, error)
        finally:
            self._page[1] = 0
        self._send()

    def _drop(self, tasks: Sequence[int]) -> None:
        self._holdings.drop(tasks, lambda task: task in self._pending or task == self._current)

    def _revoke(self, tasks: Sequence[int]) -> None:
        records = [record for task in tasks if (record := self._pending.pop(task, None)) is not None]
        for _, _, _, _, parcel, _, _ in records:
            self._holdings.decline(parcel)
        self._give_back([record[0] for record in records])
        self._send()
