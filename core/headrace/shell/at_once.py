"""Graphs of which every task is known to be quick: run in the caller's thread in one go, with nothing in between.

Such tasks run one after the other in any case (they are Python, and hold the GIL), so all that the decision core could
add is its cost, which is larger than theirs. If it turns out otherwise, what is not done yet goes the usual way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from time import perf_counter
from typing import Any, NamedTuple

from headrace.graph import Graph
from headrace.lanes.slots import Opening
from headrace.shell.jobs import Stored
from headrace.stream.gate import Gate
from headrace.stream.handle import AHEAD, NOBODY, Stream, for_task
from headrace.task import fill

PATIENCE_S = 0.02
"""So much longer than twice the expected time it may take."""


class Progress(NamedTuple):
    """How far a graph has come."""

    done: int
    """The tasks with lower indices have run."""
    values: dict[int, Any]
    """Of those, the values that somebody still needs."""
    ran: list[tuple[Hashable, int, float]]
    """What ran, in this order: family, number of tasks, seconds."""


def run_at_once(graph: Graph, expected_s: float, buffer_bytes: int) -> Progress:
    """Runs tasks from left to right, until all have run or it takes much longer than expected.

    A generator that a task returns is stepped by whoever reads it (a stream of at most ``buffer_bytes``).

    Raises:
        BaseException: what a task raises, as itself.
    """
    values = {index: value.result() if type(value) is Stored else value for index, value in graph.literals.items()}
    streams = Stream in map(type, values.values())
    readers = _readers(graph)
    ran: list[tuple[Hashable, int, float]] = []
    families, family, count, done = graph.families, None, 0, len(graph.calls)
    since = perf_counter()
    deadline = since + 2.0 * expected_s + PATIENCE_S
    for index, (fn, args, kwargs, holes) in _calls(graph):
        if families[index] is not family:
            ran.append((family, count, (now := perf_counter()) - since))
            family, count, since = families[index], 0, now
        count += 1
        if holes:
            filled = list(args)
            for position, source in holes:
                filled[position] = values[source] if type(source) is int else [values[dep] for dep in source]
            if streams:
                filled = [for_task(arg, NOBODY) for arg in filled]
            args = filled
            value = fn(*args, **kwargs) if kwargs else fn(*args)
            del filled
            if type(value) in AHEAD:
                value, streams = _stream(value, graph, index, values, buffer_bytes), True
            for dep in graph.deps[index]:
                readers[dep] -= 1
                if not readers[dep]:
                    del values[dep]
        else:
            value = fn(*args, **kwargs) if kwargs else fn(*args)
            if type(value) in AHEAD:
                value, streams = _stream(value, graph, index, values, buffer_bytes), True
        values[index] = value
        if perf_counter() > deadline:
            done = index + 1
            break
    ran.append((family, count, perf_counter() - since))
    return Progress(done, values, ran[1:])


def _stream(value: Any, graph: Graph, index: int, values: dict[int, Any], buffer_bytes: int) -> Any:
    if type(value) is Stream:
        return value
    if type(value) is Gate:
        value.wait()
        return None
    from headrace.shell.stages import pulled

    call = graph.calls[index]
    assert call is not None
    fn, _, kwargs, _ = call
    args = fill(call, values)  # once more: a program has emptied the list of its inputs
    return pulled(str(graph.keys[index]), buffer_bytes, Opening(index, value, fn, args, kwargs))


def rest_of(graph: Graph, progress: Progress) -> Graph:
    """The same graph, in which what has run is known."""
    known = {index: progress.values.get(index) for index in range(progress.done)}
    return dataclasses.replace(graph, literals={**graph.literals, **known})


def _calls(graph: Graph) -> Any:
    if not graph.literals:
        return enumerate(graph.calls)
    return ((index, call) for index, call in enumerate(graph.calls) if call is not None)


def _readers(graph: Graph) -> list[int]:
    """How often each value will be read; that of an output never ceases to be needed."""
    readers = [0] * len(graph.calls)
    for deps in graph.deps:
        for dep in deps:
            readers[dep] += 1
    for index in (*graph.outputs, *graph.literals):
        readers[index] += 1
    return readers
