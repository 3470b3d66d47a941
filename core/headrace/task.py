"""A call: one task's work as plain data that every lane can run and every process can unpickle.

A call is a plain tuple, not a class, because graphs of a million tasks are built, pickled and run of them and a
tuple is the cheapest thing for all three (PEERS: a prototype of tuples ran at 5 µs a task over a socket).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Hole: TypeAlias = tuple[int, int | tuple[int, ...]]
"""(position in args, index of the dependency), or (position, indices): then a list of the values goes there."""

Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any] | None, tuple[Hole, ...]]
"""(function, args, kwargs or None, holes). Whatever stands in args at a hole is replaced by the value."""


def run_call(call: Call, values: Mapping[int, Any]) -> Any:
    """Runs a call; ``values`` maps the indices that its holes name to the values of those tasks."""
    fn, args, kwargs, holes = call
    if holes:
        filled = list(args)
        for position, dep in holes:
            filled[position] = values[dep] if type(dep) is int else [values[d] for d in dep]  # type: ignore[union-attr]
        return fn(*filled, **kwargs) if kwargs else fn(*filled)
    return fn(*args, **kwargs) if kwargs else fn(*args)
