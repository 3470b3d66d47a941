"""Finds out which part of a value cannot be pickled, and names the path to it. Slow, and only used for that error."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from headrace.store.cloud import cloud_dumps

_CALL_FIELDS = (".function", "args", "kwargs", "holes")
_DEEPEST = 100

Part = tuple[str, Any]
"""How to get from an object to a part of it, as text to append to the object's path; and the part."""


def describe(obj: Any, error: BaseException, name: str = "") -> str:
    """A message like ``args[1]['lock'].inner: cannot pickle '_thread.lock' object``.

    Args:
        obj: what could not be pickled.
        error: what the attempt raised; used if the search finds nothing more precise.
        name: what to call ``obj``; a call (see :mod:`headrace.task`) is called by its fields.
    """
    path = name
    inside = {id(obj)}
    for _ in range(_DEEPEST):
        try:
            parts = _call_parts(obj) if not path and _is_call(obj) else list(_parts(obj))
        except Exception:
            break  # an object that cannot even be looked into is culprit enough
        found = _first_bad([part for part in parts if id(part[1]) not in inside])
        if found is None:
            break
        (step, obj), error = found
        inside.add(id(obj))
        path += step
    where = path.lstrip(".") or f"{type(obj).__module__}.{type(obj).__qualname__} object"
    return f"{where}: {_reason(obj, error)}"


def _reason(obj: Any, error: BaseException) -> str:
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return "nested too deeply to be pickled"
    text = str(error) or type(error).__name__
    kind = type(obj).__qualname__
    return text if kind in text or isinstance(error, TypeError) else f"{text} (it is of type {kind})"


def _first_bad(parts: list[Part]) -> tuple[Part, Exception] | None:
    """The first part that cannot be pickled, found by halving: a million items take twenty attempts."""
    if not parts or _try([part for _, part in parts]) is None:
        return None
    while len(parts) > 1:
        half = parts[: len(parts) // 2]
        parts = half if _try([part for _, part in half]) is not None else parts[len(half) :]
    error = _try(parts[0][1])
    return (parts[0], error) if error is not None else None


def _try(obj: Any) -> Exception | None:
    try:
        cloud_dumps(obj, lambda buffer: False)
    except Exception as error:  # what it is, is the question
        return error.with_traceback(None)  # whose frames lead back to those that hold the error
    return None


def _is_call(obj: Any) -> bool:
    return type(obj) is tuple and len(obj) == 4 and callable(obj[0]) and type(obj[1]) is tuple


def _call_parts(obj: Any) -> list[Part]:
    return list(zip(_CALL_FIELDS, obj, strict=True))


def _parts(obj: Any) -> Iterator[Part]:
    if isinstance(obj, (type, types.ModuleType)):
        return
    if isinstance(obj, types.FunctionType):
        yield from _function_parts(obj)
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
        yield ".__func__", obj.__func__
    elif isinstance(obj, functools.partial):
        yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
    elif isinstance(obj, (tuple, list, dict, set, frozenset)):
        yield from _items(obj)
        yield from _attributes(obj)
    else:
        if isinstance(obj, BaseException):
            yield from ((f".args[{index}]", item) for index, item in enumerate(obj.args))
        yield from _attributes(obj)
        yield from _reduced(obj)


def _items(obj: Any) -> Iterator[Part]:
    if isinstance(obj, dict):
        yield from ((f"[{_short(key)}]", value) for key, value in obj.items())
        yield from ((f" key {_short(key)}", key) for key in obj)
    elif isinstance(obj, (set, frozenset)):
        yield from ((f" element {_short(item)}", item) for item in obj)
    else:
        yield from ((f"[{index}]", item) for index, item in enumerate(obj))


def _function_parts(fn: types.FunctionType) -> Iterator[Part]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield f".<closure variable {name!r}>", cell.cell_contents
        except ValueError:
            continue  # the cell is empty
    for index, value in enumerate(fn.__defaults__ or ()):
        yield f".__defaults__[{index}]", value
    for name, value in (fn.__kwdefaults__ or {}).items():
        yield f".__kwdefaults__[{name!r}]", value
    for name in fn.__code__.co_names:
        if name in fn.__globals__:
            yield f".<global variable {name!r}>", fn.__globals__[name]
    yield from _attributes(fn)


def _attributes(obj: Any) -> Iterator[Part]:
    yield from ((f".{name}", value) for name, value in getattr(obj, "__dict__", {}).items())
    for kind in type(obj).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                yield f".{name}", getattr(obj, name)


def _reduced(obj: Any) -> Iterator[Part]:
    """What the object itself says that it consists of, when its attributes do not show it."""
    try:
        reduced = obj.__reduce_ex__(5)
    except Exception:
        return  # then the object itself is the culprit
    if not isinstance(reduced, tuple):
        return
    _, args, state, items, *_ = (*reduced, None, None)
    for index, part in enumerate(args):
        yield f".__reduce__()[1][{index}]", part
    if state is not None:
        yield ".__getstate__()", state
    if items is not None:
        yield from ((f"[{index}]", item) for index, item in enumerate(items))


def _short(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:  # the user's __repr__ may raise anything
        text = f"<{type(key).__qualname__}>"
    return text if len(text) <= 60 else text[:57] + "..."
