"""What stands in the database instead of a value: a small, versioned JSON object that people can read.

It has the form of a value that stock Airflow has serialized, for two reasons. The API server and the UI show such a
value as text, without looking for its class: that is the summary people see. And the REST API refuses to store anything
with these reserved names, so nobody can plant a reference there and have a task unpickle what it points to.

What a task with multiple outputs returns stands there as its parts: for each name a reference, or what stock keeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

CLASSNAME: Final = "headrace.XCom"
PARTS_CLASSNAME: Final = "headrace.XComParts"
VERSION: Final = 1
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")
_LONGEST_SHAPE: Final = 80
_FIELDS: Final = frozenset({"id", "slot", "bytes", "type", "shape", "url"})
_SLOT_FIELDS: Final = 5
"""DAG, run, task, map index, key."""


class UnknownReferenceError(ValueError):
    """A reference was written by a newer Headrace, or is damaged."""


def to_row(record: dict[str, Any]) -> dict[str, Any]:
    """The database's value for what the store says of an object."""
    data = {
        "type": record["type"], "shape": record["shape"], "size": readable_size(record["bytes"]), "url": record["url"],
        "id": record["id"], "slot": record["slot"], "bytes": record["bytes"],
    }  # fmt: skip
    return {"__classname__": CLASSNAME, "__version__": VERSION, "__data__": data}


def to_parts(rows: Mapping[str, Any]) -> dict[str, Any]:
    """The database's value for a dict whose values have these."""
    return {"__classname__": PARTS_CLASSNAME, "__version__": VERSION, "__data__": dict(rows)}


def is_reference(row: Any) -> bool:
    """Whether a database's value is a reference, of whatever version."""
    return type(row) is dict and row.get("__classname__") == CLASSNAME


def from_row(row: Any) -> dict[str, Any]:
    """What the store wants to be told of an object.

    Raises:
        UnknownReferenceError: its version is not known here, or something is missing.
    """
    data = _data(row)
    if not data.keys() >= _FIELDS or not isinstance(data["slot"], (list, tuple)) or len(data["slot"]) != _SLOT_FIELDS:
        raise _damaged(row)
    return {name: data[name] for name in _FIELDS}


def is_parts(row: Any) -> bool:
    """Whether a database's value has a row for each part of the value, of whatever version."""
    return type(row) is dict and row.get("__classname__") == PARTS_CLASSNAME


def parts_of(row: Any) -> dict[str, Any]:
    """The rows of the parts.

    Raises:
        UnknownReferenceError: as for ``from_row``.
    """
    return _data(row)


def references_in(row: Any) -> list[dict[str, Any]]:
    """The references in a database's value: none, one, or those of its parts; in what is damaged there are none."""
    parts = row.get("__data__") if is_parts(row) else {"": row}
    return [part for part in parts.values() if is_reference(part)] if isinstance(parts, dict) else []


def _data(row: Any) -> dict[str, Any]:
    version, data = row.get("__version__"), row.get("__data__")
    if version != VERSION:
        raise UnknownReferenceError(
            f"this XCom was stored by another version of Headrace (format {version}; known here: {VERSION}): "
            "use that version, or clear the task that made it"
        )
    if not isinstance(data, dict):
        raise _damaged(row)
    return data


def _damaged(row: Any) -> UnknownReferenceError:
    return UnknownReferenceError(f"this reference to a stored XCom is damaged: {row!r}")


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
