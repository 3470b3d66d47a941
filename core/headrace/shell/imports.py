"""What tasks will import: a new worker imports it before it is announced, so that no task has to wait for it there.
And whether an import is under way.

Guesses only. What is missed is imported when a task needs it; what is there in vain costs a worker memory, so nothing
is named that this process has not imported, and of a module's names only those that a function mentions are followed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dis import get_instructions
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any

from headrace.program import run_program
from headrace.store.unfinished import is_being_imported
from headrace.task import Call

_MAIN = ("__main__", "__mp_main__")
_NEVER = (*_MAIN, "builtins")


def modules_of(calls: Iterable[Call]) -> tuple[str, ...]:
    """The modules that the functions of these calls come from, and those that they import when they run, sorted."""
    names: set[str] = set()
    seen: set[int] = set()
    for fn in _functions(calls):
        if id(fn) not in seen:  # what it is may be foreign: it is neither hashed nor compared
            seen.add(id(fn))
            names.update(_mentioned(fn))
    return tuple(sorted(name for name in names if name not in _NEVER and _is_imported(name)))


def _is_imported(name: str) -> bool:
    return name in sys.modules and not is_being_imported(sys.modules[name])


def in_import() -> bool:
    """Whether the current thread is importing a module, whose own code has called us.

    What it has made so far no worker can import: that would begin with the same call. Here, whoever pickles a function
    of it in another thread waits for the end of the import, which waits for us.
    """
    frame = sys._getframe(1)
    while (outer := frame.f_back) is not None:
        if outer.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = outer
    return False


def _functions(calls: Iterable[Call]) -> Iterator[Callable[..., Any]]:
    for fn, args, _, _ in calls:
        if fn is run_program:
            yield from _functions(args[0])
        else:
            yield fn


def _mentioned(fn: Any) -> Iterator[str]:
    while isinstance(fn, partial):
        fn = fn.func
    module = getattr(fn, "__module__", None)
    if isinstance(module, str):
        yield module
    code = getattr(fn, "__code__", None)
    if isinstance(code, CodeType):
        yield from _imported(code)
        if module in _MAIN:  # it travels by value, and what it mentions with it
            yield from _globals(code, fn.__globals__)


def _imported(code: CodeType) -> Iterator[str]:
    package = ""
    for instruction in get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            package = instruction.argval
            yield package
        elif instruction.opname == "IMPORT_FROM":
            yield f"{package}.{instruction.argval}"  # perhaps a module


def _globals(code: CodeType, namespace: dict[str, Any]) -> Iterator[str]:
    for name in code.co_names:
        value = namespace.get(name)
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, (type, FunctionType)):
            yield value.__module__
