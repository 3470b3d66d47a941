"""Programs: several calls that run one after the other as a single task.

What another system calls a fused task or a task with tasks inside its arguments becomes one
:data:`~headrace.task.Call` to :func:`run_program`. A program is plain data, so it pickles like any arguments, and
running it costs about as much as the calls in it.

Registers. Step ``i`` of ``n`` leaves its value in register ``i``; input ``j`` is read from register ``-1 - j``. Both
live in one list of ``n`` results followed by the inputs in reverse, so that Python's own negative indices find the
inputs and a program can be built before it is known how many inputs there will be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from headrace.task import Call


def run_program(steps: Sequence[Call], drops: Sequence[tuple[int, ...]], inputs: list[Any]) -> Any:
    """Runs the steps in order and returns the value of the last one.

    Args:
        steps: calls whose holes name registers.
        drops: for each step the registers that nobody reads after it; they are emptied, so that memory goes early.
        inputs: values of the inputs in reverse order. The list belongs to the program and is emptied.
    """
    registers: list[Any] = [None] * len(steps)
    registers += inputs
    inputs.clear()
    for number, (fn, args, kwargs, holes) in enumerate(steps):
        if holes:
            filled = list(args)
            for position, source in holes:
                filled[position] = registers[source] if isinstance(source, int) else [registers[s] for s in source]
            registers[number] = fn(*filled, **kwargs) if kwargs else fn(*filled)
            del filled
        else:
            registers[number] = fn(*args, **kwargs) if kwargs else fn(*args)
        for register in drops[number]:
            registers[register] = None
    return registers[len(steps) - 1]


def spared(fn: Callable[..., Any], args: Sequence[Any]) -> Sequence[Any]:
    """Arguments for one call of ``fn``, if they are kept for another one: a program empties the list of its inputs."""
    if fn is not run_program:
        return args
    steps, drops, inputs = args
    return steps, drops, list(inputs)


def last_reads(steps: Sequence[Call]) -> tuple[tuple[int, ...], ...]:
    """For each step the registers that it reads as the last one of all: the ``drops`` of :func:`run_program`."""
    last: dict[int, int] = {}
    for number, (_, _, _, holes) in enumerate(steps):
        for _, source in holes:
            for register in (source,) if isinstance(source, int) else source:
                last[register] = number
    drops: list[list[int]] = [[] for _ in steps]
    for register, number in last.items():
        drops[number].append(register)
    return tuple(map(tuple, drops))


def call_with_keywords(fn: Callable[..., Any], names: Sequence[str], *values: Any) -> Any:
    """Calls ``fn`` with the last values as keyword arguments of these names (holes are positions of a call)."""
    positional = len(values) - len(names)
    return fn(*values[:positional], **dict(zip(names, values[positional:], strict=True)))


def make_list(*items: Any) -> list[Any]:
    """A new list of these items."""
    return list(items)


def make_tuple(*items: Any) -> tuple[Any, ...]:
    """These items as a tuple."""
    return items


def make_set(*items: Any) -> set[Any]:
    """A new set of these items."""
    return set(items)


def make_frozenset(*items: Any) -> frozenset[Any]:
    """A frozen set of these items."""
    return frozenset(items)


def make_dict(*items: Any) -> dict[Any, Any]:
    """A new dict of keys and values in turn."""
    return dict(zip(items[::2], items[1::2], strict=True))


def same(value: Any) -> Any:
    """The value itself."""
    return value
