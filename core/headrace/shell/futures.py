"""What :meth:`Runtime.submit` gives out, and how it ends.

All futures of a runtime belong to one job that is never over. A future is resolved outside the runtime's lock, because
its callbacks are foreign code: what a command asks for is appended to ``after``, to be called once the lock is left.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import Any

from headrace.errors import UnpicklableError
from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.shell.callbacks import Callbacks
from headrace.shell.dropped import Dropped
from headrace.shell.jobs import Job, Jobs, number_in_block
from headrace.task import Call, Slotted, call_nested, map_nested

After = list[Callable[[], object]]
"""What is to be called once the runtime's lock has been left."""
_NO_TASK = 0
"""Of a future that has failed already; no id is that low."""


class _Condition(threading.Condition):
    """One that an exception out of a signal handler, at any moment, leaves neither locked nor unlocked too often.

    ``with`` looks both methods up before it calls the first, so here it calls the lock's own, and no Python runs
    between the taking of the lock and the block. Those of the standard library are functions in Python: Ctrl-C in the
    midst of one leaves the future locked, and the thread that is to resolve it waits for ever.

    Only ``concurrent.futures.wait`` and ``as_completed`` call :meth:`acquire`: of one future after the other, all of
    which they then hold while they look which are done. So whoever calls it says before the first that it will wait.
    What is told then may resolve any of them.
    """

    def __init__(self, about_to_wait: Callable[[], None]) -> None:
        super().__init__()
        self._about_to_wait = about_to_wait
        self._take = self.acquire  # the lock's own, which stands before that of this class
        del self.acquire

    def acquire(self, blocking: bool = True, timeout: float = -1.0) -> bool:
        self._about_to_wait()
        return self._take(blocking, timeout)

    __enter__ = property(lambda self: self._lock.__enter__)  # pyright: ignore[reportAssignmentType]  # see above
    __exit__ = property(lambda self: self._lock.__exit__)  # pyright: ignore[reportAssignmentType]  # see above

    def wait(self, timeout: float | None = None) -> bool:
        try:
            return super().wait(timeout)
        except BaseException:
            if not self._is_owned():  # type: ignore[attr-defined]  # typeshed leaves it out
                self._take()  # for the ``with`` that we are in to give it back
            raise


class RuntimeFuture(Future[Any]):
    """The future of :meth:`Runtime.submit`. May be an argument of further submits, nested in lists, tuples and
    dicts."""

    def __init__(self, owner: Futures, task: int) -> None:
        super().__init__()
        self._condition = _Condition(owner.about_to_wait)
        self._owner = owner
        self._task = task
        self._cause: _Cause | None = None

    def result(self, timeout: float | None = None) -> Any:
        """As that of ``concurrent.futures``. A task may call it: it does not keep another one from running."""
        if not self.done():
            self._owner.begin_to_wait()
        try:
            return super().result(timeout)
        finally:
            del self  # or what it raises would hold it, and it holds that

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """As that of ``concurrent.futures``; see :meth:`result`."""
        if not self.done():
            self._owner.begin_to_wait()
        return super().exception(timeout)

    def running(self) -> bool:
        """Whether the task has been handed to a thread or a worker process, where it may still stand in a short queue:
        then it cannot be cancelled. What is taken back from there, to run elsewhere, is not running again."""
        return not self.done() and self._owner.is_running(self._task)

    def cancel(self) -> bool:
        """Cancels the task unless it has started; also cancels what depends on it. Does not block."""
        if not self.done():
            self._owner.post(e.TasksCancelled((self._task,)))
        return self.cancelled()

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Has ``fn(future)`` called once the future is done: in a thread of its own, where it may wait for other
        futures, or at once if the future is done already."""
        if not self.done():
            self._owner.about_to_wait()  # asyncio.wrap_future waits in this way
            fn = functools.partial(self._owner.callbacks.call, fn)
        super().add_done_callback(fn)

    def __reduce__(self) -> Any:
        raise UnpicklableError(
            "a Future stays in its process: pass it as an argument to submit(), not inside an object"
        )


class _Cause:
    """Why futures have failed; held by each of them."""

    __slots__ = ("__weakref__", "error")

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _EarlierError(Exception):
    """A future from before the runtime began afresh has failed."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Futures:
    """The futures of one runtime that are ``open``: not done, or about to hand on their callbacks. Thread-safe.

    Args:
        jobs: whose job of futures gets their calls.
        lock: the runtime's, re-entrant.
        post: hands events to the machine, and tells it of futures that were dropped.
        about_to_wait: called in a thread that is about to wait for a future.
        is_running: whether a task has been handed out.
        check_accepting: called under the lock; raises if no more work is taken.
    """

    def __init__(
        self,
        jobs: Jobs,
        lock: Any,
        post: Callable[..., object],
        about_to_wait: Callable[[], None],
        is_running: Callable[[int], bool],
        check_accepting: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._lock = lock
        self.post = post
        self.about_to_wait = about_to_wait
        self.is_running = is_running
        self._check_accepting = check_accepting
        self.callbacks = Callbacks()
        self.open: dict[int, RuntimeFuture] = {}
        # By the task that has raised, for what is submitted with one of its futures; weakly, because an error holds the
        # frames that it came through, and in those who waited for the future.
        self._causes: weakref.WeakValueDictionary[int, _Cause] = weakref.WeakValueDictionary()
        self._watchers: list[SimpleQueue[None]] = []
        """Of :meth:`wait`. Not a condition: the garbage collector may call a destructor that waits anywhere."""
        self.dropped = Dropped(post)

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> RuntimeFuture:
        """Makes a task of a call, whose arguments may contain futures of ours.

        Raises:
            RuntimeError: no more work is taken.
        """
        job = self._jobs.futures
        try:
            call, deps = self._call(job, fn, args, kwargs)
        except _EarlierError as earlier:
            failed = RuntimeFuture(self, _NO_TASK)
            failed.set_exception(earlier.error)
            return failed
        self.dropped.start()
        name = str(getattr(fn, "__name__", type(fn).__name__))
        with self._lock:
            self._check_accepting()
            future = self._registered(job, name, call, deps) if job is self._jobs.futures else None
        if future is None:  # it has just begun afresh
            return self.submit(fn, args, kwargs)
        weakref.finalize(future, self.dropped.note, future._task).atexit = False
        self.post(e.FutureSubmitted(future._task, deps, _family(fn)))
        return future

    def _registered(self, job: Job, name: str, call: Call, deps: tuple[int, ...]) -> RuntimeFuture:
        task = self._jobs.new_future()
        job.calls[task] = call
        job.deps[task] = deps
        job.keys[task] = f"{name}-{number_in_block(task)}"
        future = self.open[task] = RuntimeFuture(self, task)
        return future

    def _call(
        self, job: Job, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Call, tuple[int, ...]]:
        """The call, with holes where futures of this job were, and the ids of those. In the place of one from before
        the runtime began afresh stands its value.

        Raises:
            _EarlierError: such a one has failed.
        """
        deps: dict[int, int] = {}

        def replace(obj: Any) -> Any:
            if type(obj) is not RuntimeFuture or obj._owner is not self:
                return obj
            if obj._task in job.keys:
                return Slotted(deps.setdefault(obj._task, len(deps)))
            try:
                return obj.result()  # there, or just about to be
            except BaseException as error:  # a task may raise anything
                raise _EarlierError(error) from None

        new_args = map_nested(args, replace)
        new_kwargs = map_nested(kwargs, replace)
        if not deps:
            return (fn, new_args, new_kwargs or None, ()), ()
        return (call_nested, (fn, new_args, new_kwargs, None), None, ((3, tuple(deps)),)), tuple(deps)

    def take_dropped(self) -> tuple[e.Event, ...]:
        """The events that say which futures nobody holds any more, and what destructors wanted; under the lock."""
        tasks, deferred = self.dropped.take()
        for task in tasks:
            self._jobs.futures.errors.pop(task, None)
        return (*deferred, e.FuturesDropped(tasks))

    def begin_to_wait(self) -> None:
        """The current thread waits for a future now.

        Raises:
            RuntimeError: it holds the lock, so it is a destructor, and would wait for ever.
        """
        if self._lock._is_owned():
            raise RuntimeError(
                "a destructor cannot wait for a Future at this moment, since Headrace is at work in its thread: "
                "have it use add_done_callback() instead"
            )
        self.about_to_wait()

    def finish(self, command: c.FinishFuture, after: After) -> None:
        """The value is here or published."""
        future = self.open.get(command.task)
        if future is not None:
            job = self._jobs.futures

            def resolve() -> None:
                try:
                    value = job.load(command.task)
                except BaseException as error:  # its unpickling runs users' code, which may raise anything
                    self._settle(future, future.set_exception, error)
                else:
                    self._settle(future, future.set_result, value)
                job.calls.pop(command.task, None)  # who holds the future should not hold its arguments

            after.append(resolve)

    def fail(self, command: c.FailFuture, after: After) -> None:
        """The task, or one that it depends on, raised or kept taking workers down."""
        future = self.open.get(command.task)
        if future is not None:
            cause = future._cause = self._cause(command)
            after.append(lambda: self._settle(future, future.set_exception, cause.error))

    def _cause(self, command: c.FailFuture) -> _Cause:
        cause = self._causes.get(command.cause)
        if cause is None:
            job = self._jobs.futures
            cause = self._causes[command.cause] = _Cause(job.error(command.cause, command.deaths))
            job.errors.pop(command.cause, None)
        return cause

    def cancel(self, command: c.CancelFuture, after: After) -> None:
        """The task was cancelled before it started."""
        future = self.open.get(command.task)
        if future is not None:

            def cancel(_: None) -> None:
                if Future.cancel(future):  # not future.cancel(), which would only ask the machine once more
                    future.set_running_or_notify_cancel()

            after.append(lambda: self._settle(future, cancel, None))

    def forsake(self, error: BaseException) -> Callable[[], None]:
        """Forgets all futures; what is returned fails them, and is to be called outside the lock."""
        futures, self.open = list(self.open.values()), {}

        def fail() -> None:
            for future in futures:
                self._settle(future, future.set_exception, error)

        return fail

    def _settle(self, future: RuntimeFuture, setter: Callable[[Any], None], outcome: Any) -> None:
        try:
            setter(outcome)
        except InvalidStateError:
            pass  # the program has set a result itself, as nobody keeps it from doing
        self.open.pop(future._task, None)
        for left in list(self._watchers):
            left.put(None)

    @property
    def all_done(self) -> bool:
        """Whether all have an outcome."""
        return all(future.done() for future in list(self.open.values()))

    def wait(self) -> None:
        """Blocks until those that are open now have an outcome, and have handed on their callbacks."""
        left: SimpleQueue[None] = SimpleQueue()
        self._watchers.append(left)
        try:
            for task in list(self.open):
                while task in self.open:
                    left.get()
        finally:
            self._watchers.remove(left)


def _family(fn: Callable[..., Any]) -> Hashable:
    """Calls of one function behave alike; code, not the object, so that a lambda in a loop is one family."""
    return (
        getattr(fn, "__code__", None)
        or f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', type(fn).__name__)}"
    )
