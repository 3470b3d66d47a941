"""The runtime as a program sees it. Its work is done by an :class:`headrace.engine.Engine`."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

from headrace import config
from headrace.engine import Engine
from headrace.graph import Graph
from headrace.shell.futures import RuntimeFuture
from headrace.shell.jobs import Observer, Stored

if TYPE_CHECKING:
    from headrace.shell.pipeline import Pipeline


class Runtime(Executor):
    """Runs calls and graphs of calls on this machine, each where it runs fastest. A ``concurrent.futures.Executor``.

    Nothing is started before it is needed: threads with the first task that is not quick, worker processes when tasks
    turn out to hold the GIL. Thread-safe; of use only in the process that made it. As a context manager it waits for
    its futures and stops everything on leaving. One that is not held any more, and at the interpreter's end every one,
    finishes what was submitted and then stops, as executors of the standard library do.

    A task may run in another process, and then has copies of its arguments: what it changes in them may be seen by
    others or not.

    Args:
        settings: see :class:`headrace.config.Settings`; by default resolved from arguments and environment.
        arguments: single settings by name, as in ``Runtime(lane="threads", num_workers=4)``.

    Raises:
        ConfigError: a setting is unknown or has a value that cannot be used.
    """

    def __init__(self, settings: config.Settings | None = None, **arguments: Any) -> None:
        self._engine = Engine(settings if settings is not None else config.resolve(arguments))
        weakref.finalize(self, self._engine.drop).atexit = False

    @property
    def settings(self) -> config.Settings:
        """What it was made with; inside a worker of Headrace always with lane ``inline``."""
        return self._engine.settings

    @property
    def _max_workers(self) -> int:
        """As the executors of the standard library have it: dask and joblib look there for how much to submit."""
        return self.settings.num_workers

    def run(
        self,
        graph: Graph,
        *,
        lane: str | None = None,
        limit: int | None = None,
        observer: Observer | None = None,
        rerun: bool = False,
        keep: bool = False,
    ) -> list[Any]:
        """Runs a graph and returns the values of its outputs, in their order. Blocks; the calling thread helps.

        Args:
            graph: read, and not changed; it must not change before this returns.
            lane: overrides the setting for this graph.
            limit: how many tasks may run at once; by default, or if it is 0, ``settings.num_workers``.
            observer: is told of each task, in this thread; so that it is told at once, the thread then runs no task,
                except in lane ``inline`` and inside a task.
            rerun: a task that fails is run again in this thread, where a debugger sees it, before its exception is
                raised.
            keep: return :class:`Stored` handles instead of values.

        Raises:
            Exception: a task's own exception, as itself.
            WorkerDied: a task took down ``settings.max_deaths`` workers.
            UnpicklableError: lane ``processes`` is forced and a task or a result cannot travel.
            ConfigError: ``lane`` or ``limit`` cannot be used.
            RuntimeError: this runtime was shut down, perhaps while the graph ran, or belongs to another process.
        """
        return self._engine.run(graph, lane, limit, observer, rerun, keep)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedules ``fn(*args, **kwargs)`` and returns its future at once.

        Futures of this runtime may stand anywhere in the arguments, also nested in lists, tuples and dicts: the call
        starts once they are done and gets their values. If one of them fails, so does this future, with its exception.
        A task that nobody holds the future of still runs; its result is dropped.

        Raises:
            TypeError: ``fn`` cannot be called.
            RuntimeError: this runtime was shut down, or belongs to another process, or the interpreter ends.
        """
        return self._engine.submit(fn, args, kwargs)

    def stream(self, *stages: Callable[..., Any]) -> Pipeline:
        """Starts a pipeline that stays: requests go through its stages, and each stage is at one of its own at a time.

        Args:
            stages: plain functions of one request; or generator functions over all of them, which yield one answer for
                each. Each has a thread of its own.

        Returns:
            A context manager that ends it when it is left. Its ``submit(request)`` gives the future of the answer, its
            ``latency()`` says how long answers took.

        Raises:
            UserError: there is no stage, or one of them is async, or no function.
            RuntimeError: this runtime was shut down, or belongs to another process.
        """
        return self._engine.stream(self, stages)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the runtime: no new work is taken, what was submitted is finished. May be called again.

        A graph that another thread still waits for when all futures are done raises RuntimeError there.

        Args:
            wait: block until all futures are done, their callbacks have returned, and everything is stopped.
            cancel_futures: cancel what has not started.

        Raises:
            RuntimeError: a task of this runtime would wait for its own end.
        """
        self._engine.shutdown(wait, cancel_futures)

    def status(self) -> dict[str, Any]:
        """What runs where, what waits for what, and what the store holds: what ``headrace status`` shows.

        Takes the lock under which the runtime decides: nothing for a tight loop.

        Returns:
            Plain data, as it is at this moment, by ``pid``, ``settings``, ``jobs``, ``slots``, ``workers``, ``tasks``
            (how many are in which state), ``waiting`` and ``families`` (at most 50 of each), and ``store``.
        """
        return self._engine.status()


_default: Runtime | None = None
_default_lock = threading.RLock()  # a destructor may ask for it while it is being made


def default(settings: config.Settings | None = None) -> Runtime:
    """The runtime of this process, made at first use, closed at exit, and forgotten in forked children.

    Args:
        settings: if given and different from those of the present runtime, a new one replaces it, unless it is busy.
    """
    global _default
    with _default_lock:
        current = _default
        if current is not None and current._engine.is_open:
            if settings is None or settings == current.settings or current._engine.is_busy:
                return current
            current._engine.stop()
        _default = Runtime(settings)
        return _default


def close_default() -> None:
    """Stops the runtime of this process, if there is one; the next use of :func:`default` makes a new one."""
    global _default
    with _default_lock:
        current, _default = _default, None
    if current is not None:
        current.shutdown(wait=True)


def _forget_in_child() -> None:
    global _default, _default_lock
    _default = None
    _default_lock = threading.RLock()


os.register_at_fork(after_in_child=_forget_in_child)

__all__ = ["Observer", "Runtime", "RuntimeFuture", "Stored", "close_default", "default"]
