"""What stands in the database instead of a value: a small, versioned JSON object that people can read.

It has the form of a value that stock Airflow has serialized, for two reasons. The API server and the UI show such a
value as text, without looking for its class: that is the summary people see. And the REST API refuses to store anything
with these reserved names, so nobody can plant a reference there and have a task unpickle what it points to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

CLASSNAME: Final = "headrace.XCom"
VERSION: Final = 1
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")
_LONGEST_SHAPE: Final = 80
_FIELDS: Final = frozenset({"id", "slot", "bytes", "type", "shape", "url"})


class UnknownReferenceError(ValueError):
    """A reference was written by a newer Headrace, or is damaged."""


def to_row(record: dict[str, Any]) -> dict[str, Any]:
    """The database's value for what the store says of an object."""
    data = {
        "type": record["type"], "shape": record["shape"], "size": readable_size(record["bytes"]), "url": record["url"],
        "id": record["id"], "slot": record["slot"], "bytes": record["bytes"],
    }  # fmt: skip
    return {"__classname__": CLASSNAME, "__version__": VERSION, "__data__": data}


def is_reference(row: Any) -> bool:
    """Whether a database's value is a reference, of whatever version."""
    return type(row) is dict and row.get("__classname__") == CLASSNAME


def from_row(row: Any) -> dict[str, Any]:
    """What the store wants to be told of an object.

    Raises:
        UnknownReferenceError: its version is not known here, or something is missing.
    """
    version, data = row.get("__version__"), row.get("__data__")
    if version != VERSION:
        raise UnknownReferenceError(
            f"this XCom was stored by another version of Headrace (format {version}; known here: {VERSION}): "
            "use that version, or clear the task that made it"
        )
    if not isinstance(data, dict) or not data.keys() >= _FIELDS or len(data["slot"]) != 5:
        raise UnknownReferenceError(f"this reference to a stored XCom is damaged: {row!r}")
    return {name: data[name] for name in _FIELDS}


def readable_size(size_bytes: float) -> str:
    """For people: ``100.0 MiB``."""
    power = min(int(math.log2(max(1, size_bytes)) // 10), len(_UNITS) - 1)
    return f"{size_bytes / 1024**power:.1f} {_UNITS[power]}" if power else f"{int(size_bytes)} bytes"


def describe(value: Any) -> tuple[str, str]:
    """The type of a value, and how large it is in its own terms. Never fails, never shows any of its contents."""
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        return name, _shape(value)[:_LONGEST_SHAPE]
    except Exception:
        return name, ""  # whatever an unusual object answers must not fail the task that made it


def _shape(value: Any) -> str:
    home = type(value).__module__.partition(".")[0]
    if home == "builtins":
        return f"{len(value)} items" if isinstance(value, (list, tuple, dict, set, frozenset)) else f"{len(value)} long"
    rows, columns = getattr(value, "num_rows", None), getattr(value, "num_columns", None)
    if isinstance(rows, int):
        return f"{rows} rows × {columns} columns"
    if isinstance(value, Sequence):
        return f"{len(value)} items"
    shape = " × ".join(str(int(length)) for length in value.shape)
    dtype = getattr(value, "dtype", None)
    return f"{shape} {dtype}" if dtype is not None and len(value.shape) else shape
