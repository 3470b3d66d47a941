"""A call: one task's work as plain data that every lane can run and every process can unpickle.

A call is a plain tuple, not a class, because graphs of a million tasks are built, pickled and run of them and a
tuple is the cheapest thing for all three (a prototype of tuples ran at 5 µs a task over a socket).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Hole: TypeAlias = tuple[int, int | tuple[int, ...]]
"""(position in args, index of the dependency), or (position, indices): then a list of the values goes there."""

Call: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any] | None, tuple[Hole, ...]]
"""(function, args, kwargs or None, holes). Whatever stands in args at a hole is replaced by the value."""


def run_call(call: Call, values: Mapping[int, Any]) -> Any:
    """Runs a call; ``values`` maps the indices that its holes name to the values of those tasks.

    Hot loops (slots, programs, workers) have these lines of their own: calling them costs a quarter of a quick task.
    """
    fn, _, kwargs, _ = call
    return fn(*fill(call, values), **(kwargs or {}))


def fill(call: Call, values: Mapping[int, Any]) -> list[Any]:
    """The arguments of a call, with values for its holes."""
    _, args, _, holes = call
    found = list(args)
    for position, dep in holes:
        found[position] = values[dep] if isinstance(dep, int) else [values[d] for d in dep]
    return found


class Slotted:
    """Stands in nested arguments for the value number ``number`` of a call's dependencies."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[type[Slotted], tuple[int]]:
        return Slotted, (self.number,)


def call_nested(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], values: list[Any]) -> Any:
    """Calls ``fn`` with every :class:`Slotted` in nested lists, tuples and dicts replaced by its value."""
    return fn(*[_fill(arg, values) for arg in args], **{name: _fill(arg, values) for name, arg in kwargs.items()})


def _fill(obj: Any, values: list[Any]) -> Any:
    kind = type(obj)
    if kind is Slotted:
        return values[obj.number]
    if kind is list or kind is tuple:
        return kind([_fill(item, values) for item in obj])
    if kind is dict:
        return {_fill(key, values): _fill(value, values) for key, value in obj.items()}
    return obj


def map_nested(obj: Any, replace: Callable[[Any], Any]) -> Any:
    """Rebuilds nested lists, tuples and dicts with ``replace`` applied to the rest; shares what did not change.

    What has nothing to replace in it may contain itself, or be nested as deeply as it likes.
    """
    return _map_nested(obj, replace) if _has_to_change(obj, replace) else obj


def _has_to_change(obj: Any, replace: Callable[[Any], Any]) -> bool:
    seen: set[int] = set()
    stack = [obj]
    while stack:
        item = stack.pop()
        kind = type(item)
        if kind is list or kind is tuple or kind is dict:
            if id(item) not in seen:
                seen.add(id(item))
                stack.extend(item)
                if kind is dict:
                    stack.extend(item.values())
        elif replace(item) is not item:
            return True
    return False


def _map_nested(obj: Any, replace: Callable[[Any], Any]) -> Any:
    kind = type(obj)
    if kind is list or kind is tuple:
        items = [_map_nested(item, replace) for item in obj]
        return obj if all(a is b for a, b in zip(items, obj, strict=True)) else kind(items)
    if kind is dict:
        pairs = [(_map_nested(key, replace), _map_nested(value, replace)) for key, value in obj.items()]
        same = all(k is a and v is b for (k, v), (a, b) in zip(pairs, obj.items(), strict=True))
        return obj if same else dict(pairs)
    return replace(obj)
