"""Results of a collection's partitions while its graph still runs.

optimized graph ── translate ──> Graph ── after each wanted task one that hands its value over ──> Runtime.run
                                                                             │           (in a thread of its own)
                                        for partition in stream(...) <── queue
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import dask

from headrace.graph import Graph
from headrace.task import Call, Hole
from headrace_dask import internals
from headrace_dask.scheduler import runtime_and_lane
from headrace_dask.translate import translate


def stream(collection: Any, *, ordered: bool = False, lane: str | None = None, **kwargs: Any) -> Iterator[Any]:
    """Computes a collection and yields the results of its partitions as they get ready.

    What is ready and was not asked for yet is kept. When the iterator is closed, the computation stops at the next
    partition that is ready.

    Args:
        collection: any dask collection: a bag's partitions are lists, an array's are its blocks, a Delayed is one.
        ordered: yield them in the order of their keys, rather than as they get ready.
        lane: as for :func:`headrace_dask.get`.
        kwargs: for the collection's optimizer.

    Raises:
        Exception: a task's own exception, as itself, after the partitions that were ready before.
    """
    (optimized,) = dask.optimize(collection, traverse=False, **kwargs)
    graph = internals.mapping_of(optimized.__dask_graph__())
    keys = internals.flat_keys(optimized.__dask_keys__())
    return _Partitions(translate(graph, keys), lane).results(ordered)


class _Closed(Exception):
    """Stops a computation whose partitions nobody takes any more."""


class _Partitions:
    """A running graph, and the queue of (position among the outputs, value) that it fills."""

    def __init__(self, graph: Graph, lane: str | None) -> None:
        self._ready: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        self._closed = False
        self._error: BaseException | None = None
        self._count = len(graph.outputs)
        self._graph = handing_over(graph, self._hand_over)
        self._lane = lane

    def _hand_over(self, position: int, value: Any) -> None:
        if self._closed:
            raise _Closed
        self._ready.put((position, value))

    def results(self, ordered: bool) -> Iterator[Any]:
        thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name="headrace-dask-stream", daemon=True
        )
        thread.start()
        early: dict[int, Any] = {}
        due = 0
        try:
            for _ in range(self._count):
                position, value = self._ready.get()
                if position < 0:
                    break
                if not ordered:
                    yield value
                    continue
                early[position] = value
                while due in early:
                    yield early.pop(due)
                    due += 1
        finally:
            self._closed = True
        thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            runtime, lane = runtime_and_lane(self._lane)
            runtime.run(self._graph, lane=lane)
        except _Closed:
            pass
        except BaseException as error:  # whatever it is, it is raised where the partitions are asked for
            self._error = error
        self._ready.put((-1, None))


def handing_over(graph: Graph, hand_over: Any) -> Graph:
    """The same graph, in which each output is handed over by a task right behind it: ``hand_over(position, value)``."""
    wanted: dict[int, list[int]] = {}
    for position, index in enumerate(graph.outputs):
        wanted.setdefault(index, []).append(position)
    new = Graph()
    number: list[int] = []
    for index, call in enumerate(graph.calls):
        number.append(len(new.calls))
        deps = tuple([number[dep] for dep in graph.deps[index]])
        _append(new, graph.keys[index], _renumbered(call, number), deps, graph.families[index])
        if index in graph.literals:
            new.literals[number[index]] = graph.literals[index]
        if index in graph.pinned:
            new.pinned.add(number[index])
        for position in wanted.get(index, ()):
            handing: Call = hand_over, (position, None), None, ((1, number[index]),)
            new.outputs.append(len(new.calls))
            new.pinned.add(len(new.calls))
            _append(new, ("hand-over", position), handing, (number[index],), "hand-over")
    return new


def _append(graph: Graph, key: Any, call: Call | None, deps: tuple[int, ...], family: Any) -> None:
    graph.keys.append(key)
    graph.calls.append(call)
    graph.deps.append(deps)
    graph.families.append(family)


def _renumbered(call: Call | None, number: list[int]) -> Call | None:
    if call is None:
        return None
    fn, args, kwargs, holes = call
    new: list[Hole] = []
    for position, source in holes:
        new.append((position, number[source] if isinstance(source, int) else tuple([number[s] for s in source])))
    return fn, args, kwargs, tuple(new)
