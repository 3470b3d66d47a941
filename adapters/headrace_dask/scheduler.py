"""The callable that dask takes for a scheduler: ``get(graph, keys)``.

    compute(...) ── graph, keys ──> get ── translate ──> Graph ── Runtime.run ──> values, in the shape of keys ──> dask
                                     └── callbacks? ──> observers.Observer, told of every task by Runtime.run

What is slow (building the state that callbacks look at, looking for settings) is done only when somebody asked for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from typing import Any

import dask.config

from headrace import config
from headrace.graph import Graph
from headrace.runtime import Runtime, Stored, default
from headrace.store.pickling import estimate_size
from headrace_dask import internals
from headrace_dask.compiling import BULKY_BYTES, Bulky
from headrace_dask.observers import observed
from headrace_dask.translate import translate


class Scheduler:
    """Runs dask graphs on the default :class:`headrace.Runtime` of this process. Thread-safe; blocks; may be nested."""

    __name__ = "get"
    __qualname__ = "get"

    def __call__(
        self,
        dsk: Any,
        keys: Any,
        cache: MutableMapping[Any, Any] | None = None,
        num_workers: int | None = None,
        pool: Any = None,
        rerun_exceptions_locally: bool | None = None,
        callbacks: Any = None,
        lane: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Computes ``keys`` of a graph. Blocks, and the calling thread helps; may be called in several at once.

        Args:
            dsk: a dict, a HighLevelGraph or an expression. It is not changed.
            keys: a key, or arbitrarily nested lists of keys.
            cache: values that are known already; has the graph's data while it is computed, and gets the results. By
                default dask's setting ``cache``.
            num_workers: how many tasks may run at once; by default dask's setting ``num_workers``, then Headrace's.
            pool: a :class:`headrace.Runtime` to be used instead of this process's own; or another executor or a
                ``multiprocessing.Pool``: then dask's own loop runs the tasks there. By default dask's setting ``pool``.
            rerun_exceptions_locally: run a failing task again in this thread before its exception is raised; by default
                dask's setting of this name.
            callbacks: for this call, instead of the ones that are active; called in this thread.
            lane: ``auto``, ``inline``, ``threads`` or ``processes``; overrides the setting.
            kwargs: what other schedulers understand (``chunksize``, ...) and what a collection's optimizer wants: for
                dask's own loop, ignored otherwise.

        Returns:
            The value, or nested tuples of values where ``keys`` has lists.

        Raises:
            Exception: a task's own exception, as itself.
            headrace.errors.GraphError: the graph is wrong; also the type that dask would raise.
            headrace.errors.WorkerDied: a task took down several worker processes.
            headrace.errors.UnpicklableError: lane ``processes`` is forced, and a task or a result cannot travel.
            headrace.errors.ConfigError: a setting, ``lane`` or ``num_workers`` cannot be used.
        """
        pool = pool or dask.config.get("pool", None)
        if pool is not None and not isinstance(pool, Runtime):
            kwargs.update(rerun_exceptions_locally=rerun_exceptions_locally, callbacks=callbacks)
            return internals.get_of_pool(pool)(dsk, keys, cache=cache, num_workers=num_workers, pool=pool, **kwargs)
        flat, values = _compute(
            dsk,
            keys,
            keep=False,
            cache=cache,
            num_workers=num_workers,
            pool=pool,
            rerun_exceptions_locally=rerun_exceptions_locally,
            callbacks=callbacks,
            lane=lane,
        )
        return _shaped(keys, flat, values)

    def persist(self, collections: Any, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Computes collections and returns them with their results in place of their graphs. Blocks.

        Large results stay in the store: the graphs hold handles on them, which any scheduler can read.
        ``dask.persist`` calls this, in releases of dask that look for it at the scheduler.
        """
        from dask.base import persist

        return persist(*collections, traverse=False, optimize_graph=optimize_graph, scheduler=_keep, **kwargs)

    def __reduce__(self) -> str:
        return "get"

    def __repr__(self) -> str:
        return "headrace_dask.get"


get = Scheduler()


def _keep(dsk: Any, keys: Any, **options: Any) -> Any:
    """Like ``get``, but a large result is a graph node that holds a handle, unless another pool computes it.

    A function, because dask would call ``get.persist`` again.
    """
    pool = options["pool"] = options.get("pool") or dask.config.get("pool", None)
    if pool is not None and not isinstance(pool, Runtime):
        return get(dsk, keys, **options)
    flat, stored = _compute(dsk, keys, keep=True, **options)
    return _shaped(keys, flat, [_kept(key, handle) for key, handle in zip(flat, stored, strict=True)])


def _kept(key: Any, handle: Any) -> Any:
    value = handle.result()
    # Small results are what other schedulers make of them: plain values, which some look for in a persisted graph.
    return value if 0 <= estimate_size(value) < BULKY_BYTES else internals.StoredNode(key, handle)


def _compute(
    dsk: Any,
    keys: Any,
    *,
    keep: bool,
    cache: MutableMapping[Any, Any] | None = None,
    num_workers: int | None = None,
    pool: Any = None,
    rerun_exceptions_locally: bool | None = None,
    callbacks: Any = None,
    lane: str | None = None,
    **_others: Any,
) -> tuple[list[Any], list[Any]]:
    """The wanted keys from left to right, and the value of each, or with ``keep`` its handle. Otherwise as ``get``."""
    rerun = rerun_exceptions_locally
    graph_of: Mapping[Any, Any] = internals.mapping_of(dsk)
    flat = list(internals.flat_keys(keys)) if isinstance(keys, list) else [keys]
    runtime, lane = (pool, lane) if isinstance(pool, Runtime) else runtime_and_lane(lane)
    if rerun is None:
        rerun = dask.config.get("rerun_exceptions_locally", False)
    if cache is None:
        cache = dask.config.get("cache", None)

    def run(graph: Graph, observer: Any = None) -> list[Any]:
        limit = num_workers or dask.config.get("num_workers", None)
        with nullcontext() if cache is None else _data_in(cache, graph):
            values: list[Any] = runtime.run(
                graph, lane=lane, limit=limit, observer=observer, rerun=bool(rerun), keep=keep
            )
        return values

    local = internals.local_callbacks(callbacks)
    active = local.__enter__()
    try:
        if active:
            values = observed(graph_of, flat, cache, active, run)
        else:
            values = run(translate(graph_of, flat, values=cache))
    finally:  # with no word of an exception, whose traceback it would set: that of a frozen dataclass refuses
        local.__exit__(None, None, None)
    if cache is not None:
        cache.update(zip(flat, [v.result() for v in values] if keep else values, strict=True))
    return flat, values


@contextmanager
def _data_in(cache: MutableMapping[Any, Any], graph: Graph) -> Iterator[None]:
    """Has the data nodes of a graph in a cache, where dask has them while it computes."""
    added: list[Any] = []
    try:
        for index, value in graph.literals.items():
            key = graph.keys[index]
            if type(key) is not Bulky and key not in cache:
                cache[key] = value.result() if type(value) is Stored else value
                added.append(key)
        yield
    finally:
        for key in added:
            cache.pop(key, None)


def _shaped(keys: Any, flat: list[Any], values: list[Any]) -> Any:
    if not isinstance(keys, list):
        return values[0]
    if keys is flat or not any(isinstance(key, list) for key in keys):
        return tuple(values)
    return internals.nested_get(keys, dict(zip(flat, values, strict=True)))


# --- settings ---------------------------------------------------------------------------------------------------------

_seen: tuple[Any, config.Settings | None] = (None, None)
"""The last ``headrace`` section of the dask configuration, and what came of it."""


def runtime_and_lane(lane: str | None) -> tuple[Any, str | None]:
    """The runtime, with the settings that the dask configuration asks for, and the lane to run in.

    The lane is handed to each run, so that changing it costs no warm worker; other settings make a new runtime.
    """
    global _seen
    section = dask.config.get("headrace", None) or None
    known, settings = _seen
    if section != known:
        settings = config.resolve(overlay=section)
        _seen = (dict(section) if section else section, settings)
    runtime = default()
    if settings is not None:
        wanted = dataclasses.replace(settings, lane=runtime.settings.lane)
        if wanted != runtime.settings:
            runtime = default(wanted)
        lane = settings.lane if lane is None else lane
    return runtime, lane


__all__ = ["Scheduler", "get"]
