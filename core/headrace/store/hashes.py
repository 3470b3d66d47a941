"""Functions that call ``hash()``: the hash of a text differs from process to process, so they must all run in one.

Python salts the hashes of text and bytes with a secret that each process draws at its start, unless ``PYTHONHASHSEED``
says otherwise. A partition by ``hash(word) % n`` that was worked out here and at a worker would not be one partition.
dask's own functions no longer hash that way (they tokenize); users' do.
"""

from __future__ import annotations

import builtins
import os
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from headrace.errors import MustStayHere


def forbid_hash(fn: Any) -> None:
    """Checks a function that is about to travel.

    Raises:
        MustStayHere: it calls the builtin ``hash`` by name, and hashes of text differ between processes.
    """
    if type(fn) is FunctionType:
        found = _names_hash(fn.__code__) and fn.__globals__.get("hash", hash) is builtins.hash
    else:
        found = fn is builtins.hash
    if found and os.environ.get("PYTHONHASHSEED", "random") == "random":
        name = getattr(fn, "__qualname__", "hash")
        raise MustStayHere(
            f"{name} calls hash(), whose results for text differ between processes: its tasks run in this one; "
            "with PYTHONHASHSEED set in the environment they may run in any"
        )


@lru_cache(maxsize=4096)
def _names_hash(code: CodeType) -> bool:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return "hash" in code.co_names or any(map(_names_hash, inner))
