"""Functions that call ``hash()``: the hash of a text differs from process to process, so they must all run in one.

Python salts the hashes of text and bytes with a secret that each process draws at its start, unless ``PYTHONHASHSEED``
says otherwise. A partition by ``hash(word) % n`` that was worked out here and at a worker would not be one partition.
dask's own functions no longer hash that way (they tokenize); users' do.

What a function will call is not known. Looked at are its code, and from function to function whatever that names: other
functions, classes with all that they define, what decorators hold; as far as that is worth its time. Names lead on only
where the program's own modules lie: installed libraries ask for a hash to know whether there is one
(``Index.__contains__`` of pandas), and hardly a task would be free to leave. ``__hash__`` counts for nothing, since
sets and dicts give the same with any hash.
"""

from __future__ import annotations

import builtins
import functools
import os
import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

from headrace.errors import MustStayHere


def _seed_of_this_process() -> str:
    """What a program writes to ``os.environ`` itself comes too late for its own hashes."""
    if sys.flags.ignore_environment:
        return ""
    with suppress(OSError), open("/proc/self/environ", "rb") as file:
        for variable in file.read().split(b"\0"):
            name, _, value = variable.partition(b"=")
            if name == b"PYTHONHASHSEED" and value != b"random":
                return value.decode("ascii", "replace")
    return ""


SEED: Final = _seed_of_this_process()
"""The ``PYTHONHASHSEED`` with which this process has begun; empty if its hashes are salted with a secret."""

_KNOWN: Final = (FunctionType, type, type(lru_cache(len)))
_WRAPPERS: Final = (
    type(lru_cache(len)),
    functools.partial,
    functools.partialmethod,
    functools.cached_property,
    MethodType,
    classmethod,
    staticmethod,
    property,
)
_WRAPPED: Final = ("func", "__func__", "__wrapped__", "fget")
_LIBRARY: Final = os.path.dirname(os.__file__) + os.sep

_MOST: Final = 1000
"""Not more than this is looked at for one function."""

verdicts: dict[int, str] = {}
"""Id of a function or class that was pickled → the name of a function that calls ``hash()``, or nothing. What it
names may change later; but who pickles it by name means what it is elsewhere, and what is pickled by value is looked at
part by part."""


class HashDiffersError(MustStayHere):
    """What calls ``hash()`` was to be pickled."""


def forbid_hash(obj: Any) -> None:
    """Checks something callable that is about to travel; not what is pickled with it.

    Raises:
        HashDiffersError: it calls the builtin ``hash`` by name, and hashes of text differ between processes.
    """
    if SEED:
        return
    part = obj.__func__ if type(obj) is MethodType else obj
    name = _verdict(part) if issubclass(type(part), _KNOWN) else "hash" if part is builtins.hash else ""
    if name:
        raise HashDiffersError(
            f"{name} calls hash(), whose results for text differ between processes: its tasks run in this one; "
            "with PYTHONHASHSEED set in the environment of the whole program they may run in any"
        )


def _verdict(obj: Any) -> str:
    name = verdicts.get(id(obj))
    if name is None:
        name = verdicts[id(obj)] = _find_hash(obj)
        weakref.finalize(obj, verdicts.pop, id(obj), None).atexit = False
    return name


def _find_hash(obj: Any) -> str:
    """The name of a function that calls ``hash()``, if one is found near by; else an empty text."""
    queue, seen = deque([obj]), set[int]()
    while queue and len(seen) < _MOST:
        part = queue.popleft()
        if part is builtins.hash:
            return "hash"
        if id(part) in seen:
            continue
        seen.add(id(part))
        known = verdicts.get(id(part))
        if known is not None:
            if known:
                return known
            continue
        if type(part) is FunctionType:
            own = _is_own_file(part.__code__.co_filename)
            if (own or part is obj) and _calls_hash(part):
                return part.__qualname__
            if not own:
                continue
        queue.extend(_inside(part))
    return ""


def _calls_hash(fn: FunctionType) -> bool:
    return _names_hash(fn.__code__) and fn.__globals__.get("hash", builtins.hash) is builtins.hash


def _inside(part: Any) -> Iterable[Any]:
    """What may be called by who calls this. Runs no code of anybody's."""
    kind = type(part)
    if kind is FunctionType:
        return _held_by(part)
    if issubclass(kind, _WRAPPERS):
        return [getattr(part, name) for name in _WRAPPED if hasattr(part, name)]
    if kind in (list, tuple, set, frozenset, dict):
        return () if len(part) > _MOST else list(part.values() if kind is dict else part)
    return _methods_of(part if issubclass(kind, type) else kind)


def _held_by(fn: FunctionType) -> Iterator[Any]:
    """What a function may call."""
    yield from fn.__defaults__ or ()
    yield from (fn.__kwdefaults__ or {}).values()
    for cell in fn.__closure__ or ():
        with suppress(ValueError):  # it is empty
            yield cell.cell_contents
    yield from _named(_names_in(fn.__code__), fn.__globals__, set())


def _named(names: Iterable[str], namespace: dict[str, Any], modules: set[int]) -> Iterator[Any]:
    for name in names:
        value = namespace.get(name)
        if type(value) is not ModuleType:
            yield value
        elif id(value) not in modules and _is_own_module(value):
            modules.add(id(value))
            yield from _named(names, vars(value), modules)


def _methods_of(kind: type) -> Iterator[Any]:
    for base in kind.__mro__:
        if _is_own_module(sys.modules.get(base.__module__)):
            yield from (value for name, value in list(vars(base).items()) if name != "__hash__")


@lru_cache(maxsize=4096)
def _names_in(code: CodeType) -> frozenset[str]:
    """The names of globals and attributes in the code of a function, and in that of functions inside it."""
    if code.co_name == "__hash__":
        return frozenset()
    return frozenset(code.co_names).union(*map(_names_in, _inner(code)))


@lru_cache(maxsize=4096)
def _names_hash(code: CodeType) -> bool:
    if "hash" not in _names_in(code):
        return False
    import dis

    loads = (step for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return any(step.argval == "hash" for step in loads) or any(map(_names_hash, _inner(code)))


def _inner(code: CodeType) -> list[CodeType]:
    return [const for const in code.co_consts if isinstance(const, CodeType)]


def _is_own_module(module: Any) -> bool:
    path = vars(module).get("__file__") if type(module) is ModuleType else None
    return type(path) is str and _is_own_file(path)


@lru_cache(maxsize=4096)
def _is_own_file(path: str) -> bool:
    """Whether code is the program's own, and not from the standard library or from something that was installed."""
    return not (path.startswith((_LIBRARY, "<frozen ")) or "site-packages" in path or "dist-packages" in path)
