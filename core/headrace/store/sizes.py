"""Estimates how many bytes a value would take, without pickling it: what decides whether it rides in a message.

Nothing here imports numpy, pandas or pyarrow: a value of theirs can only exist once somebody else has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

_SCALARS: Final = frozenset({type(None), bool, float, complex})
_SIZED: Final = frozenset({int, str, bytes, bytearray})
_CONTAINERS: Final = frozenset({tuple, list, set, frozenset, dict})
_SCALAR_BYTES: Final = 16
_MOST_ITEMS: Final = 32
_DEPTH: Final = 4
_UNKNOWN_BYTES: Final = 1024
_OBJECT_BYTES: Final = 64
"""Guess for one Python object in a pandas column, mostly a short string: its pointer included."""


def estimate_size(obj: Any) -> int:
    """Bytes that a value would take, in about a µs, without pickling it; -1 if that cannot be said cheaply.

    Known are numbers, text, bytes, numpy, pandas, pyarrow and scipy.sparse objects, whatever else has a plain integer
    ``nbytes``, and small built-in containers of these.
    """
    return _estimate(obj, _DEPTH)


def weigh(item: Any) -> int:
    """About how many bytes an item takes; at least 1."""
    size = estimate_size(item)
    if size >= 0:
        return size or 1
    try:
        return sys.getsizeof(item) + len(item) * _OBJECT_BYTES
    except Exception:  # it has no length, or one that fails
        return _UNKNOWN_BYTES


def _estimate(obj: Any, depth: int) -> int:
    kind = type(obj)
    if kind in _SCALARS:
        return _SCALAR_BYTES
    if kind in _SIZED:
        return sys.getsizeof(obj)
    if kind in _CONTAINERS:
        return _container(obj, depth - 1)
    library = _LIBRARIES.get(kind.__module__.partition(".")[0], _anything)
    try:
        return library(obj)
    except Exception:
        return -1  # an estimate that meets an unusual object must never fail the task that made it


def _container(obj: Any, depth: int) -> int:
    if not depth or len(obj) > _MOST_ITEMS:
        return -1
    total = sys.getsizeof(obj)
    for item in obj:
        size = _estimate(item, depth)
        if size >= 0 and type(obj) is dict:
            value = _estimate(obj[item], depth)
            size = size + value if value >= 0 else -1
        if size < 0:
            return -1
        total += size
    return total


def _anything(obj: Any) -> int:
    # A dask collection has nbytes too: those of what it would compute.
    if hasattr(type(obj), "__dask_graph__"):
        return -1
    size = getattr(obj, "nbytes", -1)
    return size if type(size) is int else -1


def _xarray(obj: Any) -> int:
    return -1 if obj.chunks else int(obj.nbytes)


def _numpy(obj: Any) -> int:
    dtype = obj.dtype
    if dtype.hasobject:
        return -1
    size: int = obj.nbytes
    strides = getattr(obj, "strides", ())
    if 0 in strides and size:
        # Broadcast arrays travel as what they repeat.
        size = dtype.itemsize
        for length, stride in zip(obj.shape, strides, strict=True):
            size *= length if stride else 1
    return size


def _pandas(obj: Any) -> int:
    manager = getattr(obj, "_mgr", None)
    if manager is None:
        return _pandas_values(obj)
    total = sum([_pandas_values(block.values) for block in manager.blocks])
    return total + _pandas(obj.index)


def _pandas_values(values: Any) -> int:
    """Of an index, or of the array of a block."""
    if type(values).__name__ == "RangeIndex":
        return _OBJECT_BYTES
    levels = getattr(values, "levels", None)
    if levels is not None:
        return sum([_pandas_values(level) for level in levels]) + sum([int(code.nbytes) for code in values.codes])
    size: int = values.nbytes
    return size * (_OBJECT_BYTES // 8) if values.dtype.kind == "O" and hasattr(values, "strides") else size


def _arrow(obj: Any) -> int:
    size = getattr(obj, "nbytes", None)
    if size is None:
        size = obj.size  # a Buffer
    return int(size)


def _scipy(obj: Any) -> int:
    parts = [getattr(obj, name, None) for name in ("data", "indices", "indptr", "row", "col", "offsets")]
    sizes = [part.nbytes for part in parts if part is not None and hasattr(part, "nbytes")]
    return int(sum(sizes)) if sizes else -1


_LIBRARIES: Final[dict[str, Callable[[Any], int]]] = {
    "numpy": _numpy,
    "pandas": _pandas,
    "pyarrow": _arrow,
    "scipy": _scipy,
    "xarray": _xarray,
}
