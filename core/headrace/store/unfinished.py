"""What is in modules that are just being imported: no other process can import it yet."""

from __future__ import annotations

import functools
import sys
from typing import Any

from headrace.errors import MustStayHere


def is_being_imported(module: Any) -> bool:
    """Whether the code of a module still runs."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def forbid_unfinished(fn: Any) -> None:
    """Checks a function that is about to travel by its name.

    Raises:
        MustStayHere: its module is being imported, by a thread that may wait for what it has submitted: pickling it
            would wait for that import, and a worker's own import would submit the same.
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__module__", None)
    if isinstance(name, str) and is_being_imported(sys.modules.get(name)):
        raise MustStayHere(f"module {name} is still being imported: until then its tasks run in this process")
