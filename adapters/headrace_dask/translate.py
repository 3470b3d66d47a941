"""From a dask graph to a :class:`headrace.graph.Graph`, in one pass.

One depth-first walk from the wanted keys does at once what dask does in four passes (cull, convert legacy tasks, find
dependencies, order): each node is compiled when the walk first reaches it and numbered when everything it needs has
been. So what is not needed costs nothing, the numbers are the priorities that the core wants, and nothing recurses.

Aliases are not tasks: the key simply has its target's number, unless ``alias_tasks`` asks for dask's own view of the
graph (callbacks are told of every task, aliases included).
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any

from headrace.errors import BadKeyError, CycleError, MissingDependencyError, MissingKeyError
from headrace.graph import Graph, resting_collector
from headrace.program import run_program, same
from headrace_dask.compiling import Bulky, Compiled, Compiler, Ref
from headrace_dask.internals import (
    ALIAS,
    DATA,
    LITERAL,
    LOCK,
    OBJECT,
    REF,
    GraphNode,
    Task,
    convert_legacy_task,
    key_split,
    kinds,
    literal_of,
)
from headrace_dask.splitting import cuts, parts_of

_OPEN = -1
_MISSING: Any = object()
_ALIAS: Any = object()
"""Stands where a compiled call has its function, if what it stands for is no task: a key that is another one."""


def translate(
    dsk: Mapping[Hashable, Any],
    keys: Iterable[Hashable],
    *,
    values: Mapping[Hashable, Any] | None = None,
    alias_tasks: bool = False,
) -> Graph:
    """Translates what ``keys`` need of ``dsk``.

    Args:
        dsk: key → legacy task, graph node or value, mixed as they come.
        keys: the wanted keys, flat; ``outputs`` has one entry for each of them.
        values: keys whose values are known already; they are not computed.
        alias_tasks: make a task of each alias.

    Raises:
        MissingKeyError: a wanted key is not there.
        MissingDependencyError: a needed key is not there.
        CycleError: tasks need each other.
        BadKeyError: a wanted key is not hashable.
    """
    walk = _Walk(dsk, values or {}, alias_tasks)
    number, outputs = walk.number, walk.graph.outputs
    with resting_collector():
        for key in keys:
            try:
                known = key in number
            except TypeError as error:
                raise BadKeyError(f"{key!r} cannot be a key: {error}") from error
            if not known:
                walk.visit(key)
            outputs.append(number[key])
    return walk.graph


class _Walk:
    """The state of one walk; ``number`` maps a key to its index, or to ``_OPEN`` while its dependencies are visited."""

    def __init__(self, dsk: Mapping[Hashable, Any], values: Mapping[Hashable, Any], alias_tasks: bool) -> None:
        self.graph = Graph()
        self.number: dict[Hashable, int] = {}
        self._dsk = dsk
        self._values = values
        self._alias_tasks = alias_tasks
        self._known = {*dsk, *values} if values else dsk
        self._compiler = Compiler(self._known)
        self._families: dict[tuple[str, int, int], str] = {}

    def visit(self, key: Hashable) -> None:
        """Numbers ``key`` and everything it needs that has no number yet."""
        number, node_of, values = self.number, self._dsk.get, self._values
        task, legacy = self._compiler.task, self._compiler.legacy
        stack: list[tuple[Hashable, Compiled, Iterator[Hashable]]] = []
        while True:
            node = node_of(key, _MISSING)
            kind = type(node)
            compiled: Compiled | None
            if values and key in values:
                compiled = self._literal(key, values[key])
            elif kind is Task:
                compiled = task(node)
            elif kind is tuple and node and callable(node[0]):
                compiled = legacy(node)
            else:
                compiled = self._other(key, node, stack)
            if compiled is not None:
                _, _, _, refs, _ = compiled
                if refs:
                    number[key] = _OPEN
                    stack.append((key, compiled, iter(_needed(refs))))
                else:
                    self._close(key, compiled)
            # Close whatever is complete; go on with the first dependency that has no number.
            while stack:
                _, _, rest = stack[-1]
                for dep in rest:
                    at = number.get(dep)
                    if at is None:
                        key = dep
                        break
                    if at == _OPEN:
                        raise _cycle([entry[0] for entry in stack], dep)
                else:
                    complete, its_call, _ = stack.pop()
                    self._close(complete, its_call)
                    continue
                break
            else:
                return

    def _other(self, key: Hashable, node: Any, stack: list[Any]) -> Compiled | None:
        """Compiles what is neither a ``Task`` nor a legacy task; None when the key has its number already."""
        if node is _MISSING:
            if type(key) is Bulky:
                return self._literal(key, key.value)
            raise _missing(key, stack[-1][0] if stack else _MISSING)
        code = kinds[type(node)]
        if code == DATA:
            return self._literal(key, literal_of(node))
        if code in (ALIAS, REF):
            return self._alias(key, node.target if code == ALIAS else node.key, stack)
        if code not in (LITERAL, OBJECT, LOCK):
            return self._compiler.node(node)
        converted = convert_legacy_task(key, node, self._known)
        if not isinstance(converted, GraphNode):
            return self._literal(key, converted)
        return self._other(key, converted, stack) if type(converted) is not Task else self._compiler.node(converted)

    def _alias(self, key: Hashable, target: Hashable, stack: list[Any]) -> Compiled:
        if target == key:  # dask drops such a node, so that nothing makes the key
            raise _missing(key, stack[-1][0] if stack else _MISSING)
        return same if self._alias_tasks else _ALIAS, (None,), None, [(0, target)], False

    def _literal(self, key: Hashable, value: Any) -> Compiled | None:
        """Numbers a key whose value is known. Nothing is left to be compiled: always None."""
        graph = self.graph
        self.number[key] = index = len(graph.calls)
        graph.literals[index] = value
        graph.keys.append(key)
        graph.calls.append(None)
        graph.deps.append(())
        graph.families.append("data")
        return None

    def _close(self, key: Hashable, compiled: Compiled, family: Hashable = None) -> None:
        """Gives a key whose dependencies all have numbers the next number."""
        fn, args, kwargs, refs, pinned = compiled
        if fn is run_program and not self._alias_tasks and (where := cuts(args[0])):
            self._close_stages(key, compiled, where)
            return
        number, graph = self.number, self.graph
        holes: tuple[Any, ...] = ()
        deps: tuple[int, ...] = ()
        if refs:
            if len(refs) == 1 and type(refs[0][1]) is not list:
                position, dep = refs[0]
                at = number[dep]
                if fn is _ALIAS:
                    number[key] = at
                    return
                holes = ((position, at),)
                deps = (at,)
            else:
                holes, deps = _holes(refs, number)
        index = len(graph.calls)
        number[key] = index
        graph.keys.append(key)
        graph.calls.append((fn, args, kwargs, holes))
        graph.deps.append(deps)
        graph.families.append(family or self._family(key, fn))
        if pinned:
            graph.pinned.add(index)

    def _close_stages(self, key: Hashable, compiled: Compiled, where: list[int]) -> None:
        """A fused task with generator functions inside: each of its parts is a task."""
        _, (steps, *_), _, ((_, keys),), pinned = compiled
        names: list[Hashable] = [("stage", key, cut) for cut in where]
        parts = parts_of(steps, keys, where, names)
        for name, part in zip(names, parts, strict=False):
            self._close(name, (part.fn, part.args, part.kwargs, part.refs, pinned), _name_of(part.last))
        last = parts[-1]
        self._close(key, (last.fn, last.args, last.kwargs, last.refs, pinned))

    def _family(self, key: Hashable, fn: Callable[..., Any]) -> Hashable:
        """What a task is grouped by: the prefix of its key, how many indices that has, and its function.

        The prefix alone does not tell: to dask ``getitem`` is a column of a data frame, a slice of an array, and what
        is fused with it.
        """
        name: Any = key
        indices = 0
        if type(key) is tuple and key:
            name, indices = key[0], len(key) - 1
        if type(name) is not str:
            return _name_of(fn)
        if not indices:  # one name a task: what comes before the token is the same for many
            name = name[: name.rfind("-")] if "-" in name else ""
        alike = name, indices, id(fn)  # the graph holds the function, which may not be hashable
        family = self._families.get(alike)
        if family is None:
            family = f"{key_split(name)}[{indices}] {_name_of(fn)}" if name else _name_of(fn)
            family = self._families[alike] = sys.intern(family)  # equal ones are one: they are compared by identity
        return family


def _needed(refs: list[Ref]) -> list[Hashable]:
    needed: list[Hashable] = []
    for _, key in refs:
        if type(key) is list:
            needed += key
        else:
            needed.append(key)
    return needed


def _holes(refs: list[Ref], number: Mapping[Hashable, int]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    holes: list[Any] = []
    deps: dict[int, None] = {}
    for position, key in refs:
        if type(key) is list:
            indices = tuple([number[k] for k in key])
            holes.append((position, indices))
            deps.update(dict.fromkeys(indices))
        else:
            at = number[key]
            holes.append((position, at))
            deps[at] = None
    return tuple(holes), tuple(deps)


def _name_of(fn: Any) -> str:
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, types.FunctionType):
        return f"{fn.__module__}.{fn.__qualname__}:{fn.__code__.co_firstlineno}"
    name = getattr(fn, "__qualname__", None)
    return name if type(name) is str else type(fn).__qualname__


def _missing(key: Hashable, dependent: Any) -> MissingKeyError:
    if dependent is _MISSING:
        return MissingKeyError(f"{key!r} is not a key in the graph")
    return MissingDependencyError(f"Missing dependency {key!r} for dependents {{{dependent!r}}}")


def _cycle(path: list[Hashable], again: Hashable) -> CycleError:
    circle = [*path[path.index(again) :], again]
    return CycleError("Cycle detected in Dask: " + "->".join(map(str, circle)))
