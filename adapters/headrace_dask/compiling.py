"""From one node of a dask graph to one call of the core, dependencies still named by their keys.

Most nodes are plain: a function whose arguments are literals, keys, or lists of keys. They become a call in one look at
the arguments. Everything else (tasks inside arguments, keyword arguments with keys, dicts, sets, fused tasks) becomes a
:mod:`headrace.program`: dask runs a fused task by ordering and walking its inner graph at every run, which costs 100 µs
and more; a program has done that once, here. What is neither (a subclass of dask's nodes) is left to dask to call.

Invariant: an argument that stands where a hole is holds ``None``, never a dask object, so that a worker process can
unpickle a call without importing dask.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Sequence
from typing import Any, TypeAlias

from headrace.program import (
    call_with_keywords,
    last_reads,
    make_dict,
    make_frozenset,
    make_list,
    make_set,
    make_tuple,
    run_program,
    same,
)
from headrace.task import Call, Hole
from headrace_dask import internals
from headrace_dask.internals import (
    ALIAS,
    DATA,
    DICT,
    KEY_TYPES,
    LIST,
    LITERAL,
    LOCK,
    OBJECT,
    REF,
    SET,
    TASK,
    TUPLE,
    convert_legacy_task,
    execute_subgraph,
    identity_cast,
    kinds,
)

Ref: TypeAlias = tuple[int, Any]
"""(position in args, key), or (position, list of keys): keys are hashable, so a list is never a key."""

Compiled: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any] | None, list[Ref], bool]
"""(function, args, kwargs, refs, whether it must not leave this process)."""

BULKY_BYTES = 64 * 1024
"""From this size on an argument becomes a value of its own: tasks share it, and a process is sent it once."""

_MAKERS = {TUPLE: make_tuple, SET: make_set, DICT: make_dict}
_CASTS: dict[type, Callable[..., Any]] = {list: make_list, tuple: make_tuple, set: make_set, frozenset: make_frozenset}
_PLAIN_KEY_TYPES = frozenset((*KEY_TYPES, bool))


class Bulky:
    """Stands for a large argument where a key is expected; equal only to itself."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__} argument>"


class _Register(int):
    """The number of a register of a program, told apart from an int that is an argument by its type."""


class _Registers(tuple[_Register, ...]):
    """Registers whose values go into one new list."""


class _Untranslatable(Exception):
    """dask's own call must decide what this node means."""


class Compiler:
    """Compiles the nodes of one graph.

    Args:
        known: what counts as a key in a legacy task.
    """

    def __init__(self, known: Container[Hashable]) -> None:
        self.known = known
        self.writers = internals.writers()
        self._bulky: dict[int, Bulky] = {}

    def legacy(self, task: tuple[Any, ...]) -> Compiled:
        """A tuple whose first item is callable."""
        known, fn, args = self.known, task[0], task[1:]
        refs: list[Ref] = []
        for position, arg in enumerate(args):
            kind = type(arg)
            code = kinds[kind]
            if not code:
                if kind in _PLAIN_KEY_TYPES and arg in known:
                    refs.append((position, arg))
            elif kind is tuple:
                if not (arg and not callable(arg[0]) and self._is_key(arg)):
                    return self._converted(task)
                refs.append((position, arg))
            elif kind is list and arg and all(map(self._is_key, arg)):
                refs.append((position, arg))
            elif code != OBJECT or isinstance(arg, (*KEY_TYPES, list, dict, set, frozenset)):
                return self._converted(task)
            elif self._is_bulky(arg):
                refs.append((position, self.hoist(arg)))
        return fn, _without(args, refs) if refs else args, None, refs, id(fn) in self.writers

    def task(self, node: Any) -> Compiled:
        """A node of type ``Task`` exactly."""
        fn = node.func
        if node.kwargs or fn is execute_subgraph:
            return self.node(node)
        args = node.args
        refs: list[Ref] = []
        for position, arg in enumerate(args):
            code = kinds[type(arg)]
            if not code:
                continue
            if code == REF:
                refs.append((position, arg.key))
            elif code == ALIAS:
                refs.append((position, arg.target))
            elif code == OBJECT:
                if self._is_bulky(arg):
                    refs.append((position, self.hoist(arg)))
            elif code == LIST and (keys := _keys_of(arg)) is not None:
                refs.append((position, keys))
            else:
                return self.node(node)
        return fn, _without(args, refs) if refs else args, None, refs, id(fn) in self.writers

    def node(self, node: Any) -> Compiled:
        """Any graph node that is neither data nor an alias."""
        program = _Program(self)
        try:
            return program.finish(program.operand(node, program.input))
        except _Untranslatable:
            keys = tuple(node.dependencies)
            return internals.run_node, (node, keys, None), None, [(2, list(keys))], False

    def hoist(self, value: Any) -> Bulky:
        """The one stand-in of a large argument."""
        bulky = self._bulky.get(id(value))
        if bulky is None:
            bulky = self._bulky[id(value)] = Bulky(value)
        return bulky

    def _converted(self, task: tuple[Any, ...]) -> Compiled:
        return self.node(convert_legacy_task(None, task, self.known))

    def _is_key(self, arg: Any) -> bool:
        try:
            return (
                isinstance(arg, KEY_TYPES)
                and not (type(arg) is tuple and arg and callable(arg[0]))
                and arg in self.known
            )
        except TypeError:  # a tuple with something unhashable inside
            return False

    def _is_bulky(self, arg: Any) -> bool:
        if id(arg) in self._bulky:
            return True
        if type(arg).__module__ == "builtins":
            return False
        try:
            size = getattr(arg, "nbytes", 0)
        except Exception:  # a property of the user's, which dask would not have looked at
            return False
        return type(size) is int and size >= BULKY_BYTES


class _Program:
    """Collects the steps that one node comes to. An operand is a literal, a register, or registers for a list."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._steps: list[Call] = []
        self._inputs: dict[Hashable, _Register] = {}
        self._pinned = False

    def input(self, key: Hashable) -> _Register:
        """The register of a dependency of the whole node."""
        register = self._inputs.get(key)
        if register is None:
            register = self._inputs[key] = _Register(-1 - len(self._inputs))
        return register

    def operand(self, obj: Any, scope: Callable[[Hashable], Any]) -> Any:
        """What stands for an argument; ``scope`` resolves a key to an operand."""
        code = kinds[type(obj)]
        if code == LITERAL:
            return obj
        if code == REF:
            return scope(obj.key)
        if code == ALIAS:
            return scope(obj.target)
        if code == TASK:
            return self._task(obj, scope)
        if code == LIST:
            return self._list([self.operand(item, scope) for item in obj.args])
        if code in _MAKERS:
            return self._emit(_MAKERS[code], [self.operand(item, scope) for item in obj.args])
        if code in (OBJECT, LOCK, DATA):
            return self._literal(obj() if code == DATA else obj)
        keys = tuple(obj.dependencies)
        return self._emit(internals.run_node, [obj, keys, self._list([scope(key) for key in keys])])

    def finish(self, result: Any) -> Compiled:
        """The whole as one call that returns ``result``."""
        if type(result) is not _Register or result != len(self._steps) - 1:
            self._emit(same, [result])
        keys = list(self._inputs)
        if len(self._steps) == 1:
            fn, args, kwargs, holes = self._steps[0]
            return fn, args, kwargs, refs_of(holes, keys), self._pinned
        keys.reverse()
        return run_program, (tuple(self._steps), last_reads(self._steps), None), None, [(2, keys)], self._pinned

    def _literal(self, value: Any) -> Any:
        code = kinds[type(value)]
        if code == LOCK:
            self._pinned = True
        elif code == OBJECT and self._compiler._is_bulky(value):
            return self.input(self._compiler.hoist(value))
        return value

    def _list(self, items: list[Any]) -> Any:
        if all(type(item) is _Register for item in items):
            return _Registers(items)
        return self._emit(make_list, items)

    def _task(self, node: Any, scope: Callable[[Hashable], Any]) -> Any:
        fn, args, kwargs = node.func, node.args, node.kwargs
        if fn is execute_subgraph and not kwargs and len(args) >= 3 and type(args[0]) is dict:
            return self._subgraph(args, scope)
        if id(fn) in self._compiler.writers:
            self._pinned = True
        operands = [self.operand(arg, scope) for arg in args]
        if not kwargs:
            return self._emit(fn, operands)
        if fn is identity_cast and kwargs.get("typ") in _CASTS and len(kwargs) == 1:
            return self._list(operands) if kwargs["typ"] is list else self._emit(_CASTS[kwargs["typ"]], operands)
        named = {name: self.operand(value, scope) for name, value in kwargs.items()}
        if any(type(value) in (_Register, _Registers) for value in named.values()):
            return self._emit(call_with_keywords, [fn, tuple(named), *operands, *named.values()])
        return self._emit(fn, operands, named)

    def _subgraph(self, args: tuple[Any, ...], scope: Callable[[Hashable], Any]) -> Any:
        """The steps of a fused task's inner graph, depth first from its output, without what that does not need."""
        inner, outkey, inkeys, *values = args
        done: dict[Hashable, Any] = {
            key: self.operand(value, scope) for key, value in zip(inkeys, values, strict=False)
        }
        opened: set[Hashable] = set()
        stack = [outkey]
        while stack:
            key = stack[-1]
            if key in done:
                stack.pop()
                continue
            node = inner.get(key)
            if not isinstance(node, internals.GraphNode):
                raise _Untranslatable
            missing = [dep for dep in node.dependencies if dep not in done] if key not in opened else []
            if missing:
                opened.add(key)
                stack.extend(missing)
                continue
            try:
                done[key] = self.operand(node, done.__getitem__)
            except KeyError:
                raise _Untranslatable from None
        return done[outkey]

    def _emit(self, fn: Callable[..., Any], operands: list[Any], kwargs: dict[str, Any] | None = None) -> _Register:
        holes: list[Any] = []
        for position, value in enumerate(operands):
            kind = type(value)
            if kind is _Register:
                holes.append((position, int(value)))
                operands[position] = None
            elif kind is _Registers:
                holes.append((position, tuple(map(int, value))))
                operands[position] = None
        self._steps.append((fn, tuple(operands), kwargs, tuple(holes)))
        return _Register(len(self._steps) - 1)


def refs_of(holes: Sequence[Hole], keys: Sequence[Hashable]) -> list[Ref]:
    """The holes of the only step of a program, named by the keys of its inputs: those are in registers -1, -2, ..."""
    return [
        (position, keys[-1 - source] if isinstance(source, int) else [keys[-1 - s] for s in source])
        for position, source in holes
    ]


def _keys_of(container: Any) -> list[Hashable] | None:
    """The keys that a ``List`` consists of, or None if there is anything else in it."""
    keys = []
    for item in container.args:
        code = kinds[type(item)]
        if code == REF:
            keys.append(item.key)
        elif code == ALIAS:
            keys.append(item.target)
        else:
            return None
    return keys


def _without(args: tuple[Any, ...], refs: list[Ref]) -> tuple[Any, ...]:
    if len(refs) == len(args):
        return (None,) * len(args)
    left = list(args)
    for position, _ in refs:
        left[position] = None
    return tuple(left)


__all__ = ["BULKY_BYTES", "Bulky", "Compiled", "Compiler", "Ref", "refs_of"]
