"""Takes apart what dask has fused, where a generator function makes what the rest reads: each part becomes a stage.

Fused tasks run one after the other in one place. For stages that is wrong: they are to run side by side. A program is
cut behind a step whose function is a generator function, if nothing behind the cut reads what came before that step.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from headrace.program import last_reads, run_program
from headrace.task import Call, Hole
from headrace_dask import internals
from headrace_dask.compiling import Ref, refs_of

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Part(NamedTuple):
    """One part of a program: its last step's function names it."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    refs: list[Ref]
    last: Callable[..., Any]


def cuts(steps: Sequence[Call]) -> list[int]:
    """The steps behind which a program is to be cut; nearly always none."""
    found = [number for number, step in enumerate(steps[:-1]) if _makes_stream(step[0])]
    if not found:
        return found
    last = [-1] * len(steps)
    for number, step in enumerate(steps):
        for source in _sources(step):
            if source >= 0:
                last[source] = number
    return [cut for cut in found if all(last[before] <= cut for before in range(cut))]


def parts_of(
    steps: Sequence[Call], keys: Sequence[Hashable], cuts: Sequence[int], names: Sequence[Hashable]
) -> list[Part]:
    """The parts of a program, in order.

    Args:
        steps: of the program.
        keys: of its inputs, as :func:`headrace.program.run_program` takes their values.
        cuts: see :func:`cuts`.
        names: keys for the parts but the last.
    """
    made = dict(zip(cuts, names, strict=True))
    starts = [0, *[cut + 1 for cut in cuts], len(steps)]
    return [_part(steps[start:end], start, keys, made) for start, end in itertools.pairwise(starts)]


def _part(steps: Sequence[Call], start: int, keys: Sequence[Hashable], made: dict[int, Hashable]) -> Part:
    inputs: dict[Hashable, int] = {}

    def register(source: int) -> int:
        if source >= start:
            return source - start
        key = keys[source] if source < 0 else made[source]
        return -1 - inputs.setdefault(key, len(inputs))

    new: list[Call] = []
    for number, (fn, args, kwargs, holes) in enumerate(steps, start):
        if internals.is_reify(fn) and _source(holes) in made and _is_read_lazily(number, steps, start):
            fn = item_by_item
        moved: list[Hole] = []
        for position, source in holes:
            moved.append((position, register(source) if isinstance(source, int) else tuple(map(register, source))))
        new.append((fn, args, kwargs, tuple(moved)))
    names = list(inputs)
    last = new[-1][0]
    if len(new) == 1:
        fn, args, kwargs, holes = new[0]
        return Part(fn, args, kwargs, refs_of(holes, names), last)
    names.reverse()
    return Part(run_program, (tuple(new), last_reads(new), None), None, [(2, names)], last)


def item_by_item(part: Any) -> Iterator[Any]:
    """What stands for ``reify`` between a stream and what reads it item by item: there is no need to have all of it."""
    return (list(item) if isinstance(item, Iterator) else item for item in part)


def _source(holes: Sequence[Hole]) -> Any:
    return holes[0][1] if len(holes) == 1 else None


def _is_read_lazily(number: int, steps: Sequence[Call], start: int) -> bool:
    """Whether what a step makes is read once, by a function of dask's bags: those take any iterable."""
    readers = [step[0] for step in steps[number - start + 1 :] if number in _sources(step)]
    return len(readers) == 1 and internals.is_of_bags(readers[0])


def _sources(step: Call) -> list[int]:
    found: list[int] = []
    _, _, _, holes = step
    for _, source in holes:
        found += [source] if isinstance(source, int) else source
    return found


def _makes_stream(fn: Any) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    return code is not None and bool(code.co_flags & _GENERATOR)
