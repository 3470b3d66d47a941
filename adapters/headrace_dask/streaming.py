"""Results of a collection's partitions while its graph still runs, which computes no more than fits a budget.

::

    optimized graph ── translate ──> Graph ── woven: gates, and tasks that hand over ──> Runtime.run
                                                │     ▲                │                 (in a thread of its own)
                                          admit │     │ gates open     │ value
                                                ▼     │                ▼
              for partition in stream(...) ───► Credit (bytes) ◄── queue of what is ready

A gate is a task behind which the tasks wait that a partition is the first one to need. Partitions are admitted in the
order of their keys, so whoever reads in that order never waits for one that cannot be computed for want of room.
"""

from __future__ import annotations

import contextvars
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import dask

from headrace.graph import Graph
from headrace.store.sizes import weigh
from headrace.stream.gate import Gate
from headrace.task import Call, Hole
from headrace_dask import internals
from headrace_dask.scheduler import runtime_and_lane
from headrace_dask.translate import translate


def stream(collection: Any, *, ordered: bool = False, lane: str | None = None, **kwargs: Any) -> Iterator[Any]:
    """Computes a collection and yields the results of its partitions as they get ready.

    A slow reader slows down the computation: as soon as what is ready and being made (taken to be as large as what has
    been made so far) comes to ``stream_buffer_bytes``, no further partition is begun. When the iterator is closed, or
    not held any more, nothing else is begun at all.

    Args:
        collection: any dask collection: a bag's partitions are lists, an array's are its blocks, a Delayed is one.
        ordered: yield them in the order of their keys, rather than as they get ready.
        lane: as for :func:`headrace_dask.get`.
        kwargs: for the collection's optimizer.

    Returns:
        An iterator for one thread at a time; the computation starts with its first step. Each step blocks until a
        partition is ready.

    Raises:
        Exception: a task's own exception, as itself, after the partitions that were ready before.
        headrace.errors.GraphError: the graph is wrong; at once.
        headrace.errors.ConfigError: ``lane`` or a setting cannot be used; with the first step.
    """
    (optimized,) = dask.optimize(collection, traverse=False, **kwargs)
    graph = internals.mapping_of(optimized.__dask_graph__())
    keys = internals.flat_keys(optimized.__dask_keys__())
    return _results(translate(graph, keys), ordered, lane)


def _results(graph: Graph, ordered: bool, lane: str | None) -> Iterator[Any]:
    runtime, lane = runtime_and_lane(lane)
    credit = Credit(runtime.settings.stream_buffer_bytes, 2 * runtime.settings.num_workers)
    run = _Run(graph, credit)
    thread = threading.Thread(
        target=contextvars.copy_context().run, args=(run.run, runtime, lane), name="headrace-dask-stream", daemon=True
    )
    thread.start()
    early: dict[int, tuple[Any, int]] = {}
    try:
        for position in range(len(graph.outputs)):
            while not early or (ordered and position not in early):
                early.update(run.next_ready())
            value, size = early.pop(position if ordered else next(iter(early)))
            taken = [value]
            del value
            yield taken.pop()  # which is not kept here
            credit.gone(size)
    finally:
        credit.close()
    thread.join()


class ClosedError(Exception):
    """Stops a computation whose partitions nobody takes any more."""


class Credit:
    """Says which partitions may be computed. Thread-safe; nothing blocks.

    A partition is *admitted*, then *made*, and *gone* when its reader asks for the next one.

    Args:
        budget_bytes: of all that are made or being made and not gone. One is always admitted if there is none, or if
            the reader waits and none is being made.
        first: so many are admitted before the size of any is known.
    """

    def __init__(self, budget_bytes: int, first: int) -> None:
        self._budget_bytes = budget_bytes
        self._first = first
        self._lock = threading.Lock()
        self._admitted = -1  # the group that was last
        self._making = 0
        self._made = 0
        self._made_bytes = 0
        self._held_bytes = 0  # made, and not gone
        self._seen = 0  # by the reader
        self._reader_waits = False
        self._closed = False
        self._gate: tuple[Gate, int] | None = None  # of the next group, with its partitions

    def admit(self, group: int, partitions: int) -> Gate | None:
        """A task: it is done when these partitions may be computed. Groups, from 0, come one after the other.

        Raises:
            ClosedError: they need not be.
        """
        with self._lock:
            if self._closed:
                raise ClosedError
            if group <= self._admitted:
                return None  # run again, after what it had let begin was lost
            self._admitted = group
            if self._may_make(partitions):
                self._making += partitions
                return None
            gate = Gate()
            self._gate = gate, partitions
            return gate

    def made(self, size_bytes: int) -> None:
        """A partition is ready.

        Raises:
            ClosedError: nobody wants it.
        """
        with self._lock:
            if self._closed:
                raise ClosedError
            self._making -= 1
            self._held_bytes += size_bytes
            self._made += 1
            self._made_bytes += size_bytes
        self._look()

    def gone(self, size_bytes: int) -> None:
        """The reader has done with a partition."""
        with self._lock:
            self._held_bytes -= size_bytes
        self._look()

    def reader_waits(self) -> None:
        """The reader has nothing to do before it sees another partition."""
        with self._lock:
            self._reader_waits = True
        self._look()

    def reader_sees(self) -> None:
        """The reader sees one more that is made."""
        with self._lock:
            self._reader_waits = False
            self._seen += 1

    def close(self) -> None:
        """Nothing more is admitted."""
        with self._lock:
            self._closed = True
            pending, self._gate = self._gate, None
        if pending is not None:
            pending[0].open(ClosedError())

    def _look(self) -> None:
        """Opens the gate if there is room now."""
        with self._lock:
            pending = self._gate
            if pending is None or not self._may_make(pending[1]):
                return
            self._gate = None
            self._making += pending[1]
        pending[0].open()

    def _may_make(self, partitions: int) -> bool:
        if not self._making and ((self._reader_waits and self._seen == self._made) or not self._held_bytes):
            return True
        if not self._made:
            return self._making + partitions <= self._first
        expected_bytes = (self._making + partitions) * self._made_bytes / self._made
        return self._held_bytes + expected_bytes <= self._budget_bytes


class _Run:
    """A graph that runs, and the queue of (position among the outputs, value, its bytes) that it fills."""

    def __init__(self, graph: Graph, credit: Credit) -> None:
        self._credit = credit
        self._ready: SimpleQueue[tuple[int, Any, int]] = SimpleQueue()
        self._graph = woven(graph, credit.admit, self._hand_over)
        self._error: BaseException | None = None

    def _hand_over(self, position: int, value: Any) -> None:
        size = 1 if isinstance(value, Iterator) else weigh(value)  # a stream has a budget of its own
        self._credit.made(size)
        self._ready.put((position, value, size))

    def next_ready(self) -> dict[int, tuple[Any, int]]:
        """Waits for a partition: position → value and bytes.

        Raises:
            BaseException: the graph has failed.
        """
        if self._ready.empty():
            self._credit.reader_waits()
        position, value, size = self._ready.get()
        if position < 0:
            assert self._error is not None, "the graph has run, and handed over too little"
            raise self._error
        self._credit.reader_sees()
        return {position: (value, size)}

    def run(self, runtime: Any, lane: str | None) -> None:
        """Runs the graph, in the current thread."""
        try:
            runtime.run(self._graph, lane=lane)
        except ClosedError:
            pass
        except BaseException as error:  # whatever it is, it is raised where the partitions are asked for
            self._error = error
        self._ready.put((-1, None, 0))


def woven(graph: Graph, admit: Callable[[int, int], Gate | None], hand_over: Callable[[int, Any], object]) -> Graph:
    """The same graph, in which tasks of ours stand before and behind what makes each output.

    Behind each output one that calls ``hand_over(position, value)``; and before what a group of outputs is the first to
    need one that calls ``admit(group, outputs)``, counted from 0. Indices are in depth-first order from the outputs, so
    a group is a range of them.
    """
    ends, sizes = _groups(graph.outputs)
    positions: dict[int, list[int]] = {}
    for position, index in enumerate(graph.outputs):
        positions.setdefault(index, []).append(position)
    weaver = _Weaver(graph)
    start = 0
    for group, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        weaver.gate(admit, group, size)
        for index in range(start, end + 1):
            weaver.task(index, start)
            for position in positions.get(index, ()):
                weaver.hand_over(hand_over, position, index)
        start = end + 1
    return weaver.new


def _groups(outputs: list[int]) -> tuple[list[int], list[int]]:
    """Of each group the last index, and how many outputs are in it: what an output needs makes others by the way."""
    ends: list[int] = []
    sizes: list[int] = []
    for index in outputs:
        if not ends or index > ends[-1]:
            ends.append(index)
            sizes.append(1)
        else:
            sizes[bisect_left(ends, index)] += 1
    return ends, sizes


class _Weaver:
    """Copies a graph task by task, with others in between."""

    def __init__(self, graph: Graph) -> None:
        self.new = Graph()
        self._graph = graph
        self._number: list[int] = []
        self._gate: int | None = None

    def task(self, index: int, start: int) -> None:
        """The next task. One that needs nothing from ``start`` on waits for the last gate."""
        graph, number = self._graph, self._number
        number.append(len(self.new.calls))
        if index in graph.literals:
            self.new.literals[number[index]] = graph.literals[index]
        if index in graph.pinned:
            self.new.pinned.add(number[index])
        deps = tuple([number[dep] for dep in graph.deps[index]])
        call = graph.calls[index]
        if call is not None:
            call = _renumbered(call, number)
            if self._gate is not None and all(dep < start or dep in graph.literals for dep in graph.deps[index]):
                deps += (self._gate,)
        self._append(graph.keys[index], call, deps, graph.families[index])

    def gate(self, admit: Callable[[int, int], Gate | None], group: int, partitions: int) -> None:
        """The tasks that follow may have to wait."""
        before = () if self._gate is None else (self._gate,)
        self._gate = len(self.new.calls)
        self.new.pinned.add(self._gate)
        self._append(("admit", group), (admit, (group, partitions), None, ()), before, "admit")

    def hand_over(self, hand_over: Callable[[int, Any], object], position: int, index: int) -> None:
        """The value of this task is an output."""
        source = self._number[index]
        deps = (source,) if self._gate is None or index not in self._graph.literals else (source, self._gate)
        self.new.outputs.append(len(self.new.calls))
        self.new.pinned.add(len(self.new.calls))
        call: Call = hand_over, (position, None), None, ((1, source),)
        self._append(("hand-over", position), call, deps, "hand-over")

    def _append(self, key: Any, call: Call | None, deps: tuple[int, ...], family: Any) -> None:
        self.new.keys.append(key)
        self.new.calls.append(call)
        self.new.deps.append(deps)
        self.new.families.append(family)


def _renumbered(call: Call, number: list[int]) -> Call:
    fn, args, kwargs, holes = call
    new: list[Hole] = []
    for position, source in holes:
        new.append((position, number[source] if isinstance(source, int) else tuple([number[s] for s in source])))
    return fn, args, kwargs, tuple(new)
