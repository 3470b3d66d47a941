"""Random graphs of stages, and what they give when they run one after the other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from headrace.graph import Graph

MOST_ITEMS = 400


def items_of(value: Any) -> Iterable[Any]:
    return [value] if isinstance(value, int) else value


def source(length: int, width: int) -> Iterator[Any]:
    for number in range(length):
        yield (number, bytes(width)) if width else number


def one_after_the_other(*inputs: Any) -> Iterator[Any]:
    for value in inputs:
        yield from items_of(value)


def in_turn(*inputs: Any) -> Iterator[Any]:
    """Reads its inputs at the same speed, as long as all of them last."""
    yield from chain.from_iterable(zip(*map(items_of, inputs), strict=False))


def unevenly(*inputs: Any) -> Iterator[Any]:
    """Reads the first one three times as fast as the others."""
    first, *others = [iter(items_of(value)) for value in inputs]
    for item in first:
        yield item
        yield from islice(first, 2)
        for other in others:
            yield from islice(other, 1)


def head(*inputs: Any) -> Iterator[Any]:
    yield from islice(one_after_the_other(*inputs), 3)


def last_first(*inputs: Any) -> Iterator[Any]:
    """Reads the last input to its end before it begins with the first."""
    yield from list(items_of(inputs[-1]))[:MOST_ITEMS]
    for value in inputs[:-1]:
        yield from items_of(value)


def twice(*inputs: Any) -> Iterator[Any]:
    for value in inputs:
        yield from items_of(value)
        yield from islice(items_of(value), 5)


def number_of(item: Any) -> int:
    return item if isinstance(item, int) else int(item[0])


def total(*inputs: Any) -> int:
    return sum(number_of(item) for item in one_after_the_other(*inputs))


def length(*inputs: Any) -> int:
    """Asks for the length before it reads anything."""
    return sum(len(items_of(value)) for value in inputs)  # type: ignore[arg-type]


STAGES: list[Callable[..., Any]] = [one_after_the_other, in_turn, unevenly, head, last_first, twice, total, length]


def random_graph(rng: random.Random, most: int = 8) -> Graph:
    """A graph of up to ``most`` stages."""
    graph = Graph()
    for number in range(rng.randint(1, most)):
        deps = tuple(sorted(rng.sample(range(number), min(number, rng.choice((0, 1, 1, 2, 2, 3))))))
        if deps:
            stage = rng.choice(STAGES)
            call: Any = (stage, (None,) * len(deps), None, tuple(enumerate(deps)))
        else:
            stage = source
            call = (source, (rng.choice((0, 1, 3, 50, MOST_ITEMS)), rng.choice((0, 0, 10, 1000))), None, ())
        graph.calls.append(call)
        graph.deps.append(deps)
        graph.keys.append(f"{stage.__name__}-{number}")
        graph.families.append(stage.__name__)
    size = len(graph.calls)
    graph.outputs = sorted(rng.sample(range(size), rng.randint(1, min(3, size))))
    return graph


def plain(value: Any) -> Any:
    """A result as plain data."""
    return value if isinstance(value, int) else list(islice(value, 20 * MOST_ITEMS))


def one_by_one(graph: Graph) -> list[Any]:
    """The results of a graph, each task run to its end before the next."""
    values: list[Any] = []
    for call in graph.calls:
        assert call is not None
        fn, args, _, holes = call
        values.append(plain(fn(*([values[dep] for _, dep in holes] if holes else args))))  # type: ignore[index]
    return [values[index] for index in graph.outputs]
