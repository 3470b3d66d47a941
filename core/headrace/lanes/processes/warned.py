"""Warnings that tasks issue in workers, as if a thread of the owner had issued them.

::

    owner: warnings.filters ── states, once a job ──► worker: they decide what is ignored, shown or raised in the task
    owner: warnings.showwarning, in the caller's thread ◄── say, hear ── worker: what is shown

So ``pytest.warns``, ``catch_warnings`` and filters around a compute see what they would see of tasks on threads. Only
what each worker remembers to have shown is its own: the action "default" shows a warning once in each.
"""

from __future__ import annotations

import builtins
import marshal
import warnings
from typing import Any

from headrace import companions
from headrace.lanes.processes.failures import text_of
from headrace.lanes.processes.parcels import Parcel, open_whole, whole
from headrace.store.pickling import pack

_seen: tuple[list[Any], bytes] = ([], b"")
"""The filters that were looked at last, and what came of it."""


# --- filters ----------------------------------------------------------------------------------------------------------


class _ByName(type):
    """Of a stand-in for a category that this worker has perhaps not imported: any class of that name belongs to it."""

    name: tuple[str, str]

    def __subclasscheck__(cls, kind: type) -> bool:
        return any((base.__module__, base.__qualname__) == cls.name for base in kind.__mro__)


def _state() -> bytes:
    global _seen
    filters = list(warnings.filters)
    if filters != _seen[0]:
        _seen = filters, marshal.dumps([_described(*entry) for entry in filters])
    return _seen[1]


def _described(action: str, message: Any, category: Any, module: Any, line: int) -> tuple[Any, ...]:
    return action, _pattern(message), category.__module__, category.__qualname__, _pattern(module), line


def _pattern(text: Any) -> str:
    """Of a regular expression, nothing, or a plain text, which the interpreter's own filters have."""
    return "" if text is None else str(getattr(text, "pattern", rf"{text}\Z"))


def _apply(state: bytes) -> None:
    warnings.resetwarnings()
    for action, message, *category, module, line in marshal.loads(state):
        warnings.filterwarnings(action, message, _category(*category), module, line, append=True)


def _category(module: str, name: str) -> type[Warning]:
    category: Any = getattr(builtins, name, None) if module == "builtins" else None
    stand_in: Any = _ByName(name, (Warning,), {"name": (module, name)})
    found: type[Warning] = category or stand_in
    return found


# --- what is shown ----------------------------------------------------------------------------------------------------


def divert() -> None:
    """In a worker: has warnings shown in the owner, unless no task is running."""
    show = warnings.showwarning

    def showwarning(
        message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        if file is not None or not companions.say("warnings", _describe(message, filename, lineno)):
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = showwarning


def _describe(message: Any, filename: str, line: int) -> bytes:
    base = next(kind for kind in type(message).__mro__ if kind.__module__ == "builtins")
    parcel: Parcel | None = None
    try:
        parcel = whole(pack(message))
    except Exception:
        pass  # its text will do
    return marshal.dumps((parcel, base.__name__, text_of(message), filename, line))


def _show(described: bytes) -> None:
    parcel, base, text, filename, line = marshal.loads(described)
    message = _revive(parcel, base, text)
    warnings.showwarning(message, type(message), filename, line)


def _revive(parcel: Parcel | None, base: str, text: str) -> Warning:
    """A worker's warning; one of its built-in base class if it cannot be brought here."""
    if parcel is not None:
        try:
            message = open_whole(parcel)
            if isinstance(message, Warning):
                return message
        except Exception:  # its class is not there, or its __init__ fails
            pass
    substitute: Warning = getattr(builtins, base)(text)
    return substitute


companions.share("warnings", _state, _apply, _show)
