"""dask's callbacks, told what they are told by dask's own schedulers: the same calls with the same ``state``.

Callbacks get the whole graph as graph nodes (and may put values into it: ``dask.cache.Cache`` does), then the state
dict of ``dask.local``, which is kept up to date with dask's own functions while the runtime reports what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from headrace.graph import Graph
from headrace_dask import internals
from headrace_dask.translate import translate


def observed(
    dsk: Mapping[Any, Any],
    keys: list[Any],
    cache: MutableMapping[Any, Any] | None,
    callbacks: Any,
    run: Callable[[Graph, Any], list[Any]],
) -> list[Any]:
    """Translates and runs a graph under callbacks.

    Args:
        dsk: the graph.
        keys: the wanted keys.
        cache: values that are known already.
        callbacks: tuples of (start, start_state, pretask, posttask, finish), each of which may be None.
        run: runs a translated graph and tells an observer.
    """
    dsk = internals.convert_legacy_graph(dsk, {*dsk, *cache} if cache else None)
    state: dict[str, Any] = {}
    started = []
    failed = True
    try:
        for callback in callbacks:
            start, *_ = callback
            if start:
                start(dsk)
            started.append(callback)
        graph = translate(dsk, keys, values=cache, alias_tasks=True)
        state.update(_state(dsk, graph, cache))
        for callback in callbacks:
            _, start_state, *_ = callback
            if start_state:
                start_state(dsk, state)
        values = run(graph, Observer(dsk, graph, state, set(keys), callbacks))
        failed = False
        return values
    finally:
        for callback in started:
            *_, finish = callback
            if finish:
                finish(dsk, state, failed)


class Observer:
    """Keeps the state and calls the callbacks; its methods are called in the thread that computes.

    The runtime says that a task has started when it hands it out, perhaps in a batch with what it depends on. Callbacks
    are told when dask would tell them: once all its dependencies have finished.
    """

    def __init__(
        self, dsk: Mapping[Any, Any], graph: Graph, state: dict[str, Any], wanted: set[Any], callbacks: Any
    ) -> None:
        _, _, self._pretask, self._posttask, _ = internals.unpack_callbacks(callbacks)
        self.needs_values = any(not internals.ignores_values(posttask) for posttask in self._posttask)
        self._dsk = dsk
        self._graph = graph
        self._state = state
        self._wanted = wanted
        self._priority = _priorities(graph).__getitem__
        self._early: set[Any] = set()

    def started(self, index: int) -> None:
        """A task is about to run, here or elsewhere; once a try."""
        key, state = self._graph.keys[index], self._state
        if key in state["waiting"]:
            self._early.add(key)
        elif key not in state["running"] and key not in state["finished"]:  # it would be: tried again, a worker died
            self._start(key)

    def _start(self, key: Any) -> None:
        state = self._state
        ready = state["ready"]
        for at in range(len(ready) - 1, -1, -1):  # what runs next stands at the end
            if ready[at] == key:
                del ready[at]
                break
        state["running"].add(key)
        for pretask in self._pretask:
            pretask(key, self._dsk, state)

    def finished(self, index: int, value: Any, worker: str) -> None:
        """A task has its value."""
        key, state = self._graph.keys[index], self._state
        if key in state["finished"]:
            return  # computed again, after a worker died with its value
        if key not in state["running"]:
            self._start(key)
        state["cache"][key] = value
        internals.finish_task(self._dsk, key, state, self._wanted, self._priority)
        for posttask in self._posttask:
            posttask(key, value, self._dsk, state, worker)
        if self._early:
            for dependent in state["dependents"][key] & self._early:
                if dependent not in state["waiting"]:
                    self._early.remove(dependent)
                    self._start(dependent)


def _priorities(graph: Graph) -> dict[Any, int]:
    return {key: index for index, key in enumerate(graph.keys)}


def _state(dsk: Mapping[Any, Any], graph: Graph, cache: Mapping[Any, Any] | None) -> dict[str, Any]:
    """The state in which dask would start this graph: without what is not needed. What is known already is its data."""
    needed = {key: dsk[key] for key in graph.keys if key in dsk}
    if cache:
        needed.update({key: internals.DataNode(key, cache[key]) for key in graph.keys if key in cache})
    return internals.start_state(needed, {}, _priorities(graph), list(needed))
