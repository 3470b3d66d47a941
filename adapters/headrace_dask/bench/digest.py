"""Fingerprints of results, so that schedulers in different processes can be compared without moving the results.

A digest has two parts: a hash over every bit of the result, and a list of leaves that describe it (sums, extremes, a
sum weighted by position) for results that may differ by rounding. Two digests are compared by :func:`compare`.

Nothing here needs numpy, unless a value of numpy's is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import sys
from collections.abc import Mapping, Set
from math import inf, isfinite, isnan
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import numpy as np

Leaf = str | list[float]
"""Text that must be equal, or [scale, NaNs, infinities, negative infinities, number, number, ...]: those counts must be
equal, and the numbers may differ by a tolerance times the scale."""
_COUNTS = slice(1, 4)


class Digest(TypedDict):
    exact: str
    leaves: list[Leaf]


def digest(value: Any, *, exact: bool = False) -> Digest:
    """Describes any result: containers, numbers, numpy, pandas, xarray, scipy.sparse; else whatever has a pickle.

    Args:
        value: the result.
        exact: leave the leaves out; then two digests can only be equal or different.
    """
    sha = hashlib.sha256()
    leaves: list[Leaf] = []
    _walk(value, sha, leaves)
    return {"exact": sha.hexdigest(), "leaves": [] if exact else leaves}


def compare(first: Digest, second: Digest, rtol: float) -> str:
    """``"equal"``, ``"close"`` (differs by rounding, within ``rtol``) or ``"different"``."""
    if first["exact"] == second["exact"]:
        return "equal"
    if rtol == 0 or len(first["leaves"]) != len(second["leaves"]):
        return "different"
    return "close" if all(map(lambda a, b: _alike(a, b, rtol), first["leaves"], second["leaves"])) else "different"


def _alike(first: Leaf, second: Leaf, rtol: float) -> bool:
    if isinstance(first, str) or isinstance(second, str):
        return first == second
    if first[_COUNTS] != second[_COUNTS]:
        return False
    tolerance = rtol * max(first[0], second[0])
    same = (a == b or abs(a - b) <= tolerance for a, b in zip(first, second, strict=True))
    return all(same)


def _walk(value: Any, sha: Any, leaves: list[Leaf]) -> None:
    np: Any = sys.modules.get("numpy")
    if isinstance(value, (float, complex)):
        _number(value, sha, leaves)
    elif value is None or isinstance(value, (bool, int, str, bytes)):
        _text(f"{type(value).__name__}:{value!r}", sha, leaves)
    elif np is not None and isinstance(value, (np.ndarray, np.inexact)):
        _array(np.asarray(value), sha, leaves)
    elif np is not None and isinstance(value, np.generic):
        _text(f"{type(value).__name__}:{value!r}", sha, leaves)
    elif isinstance(value, Mapping):
        _text(f"mapping:{len(value)}", sha, leaves)
        for key in sorted(value, key=repr):
            _walk(key, sha, leaves)
            _walk(value[key], sha, leaves)
    elif isinstance(value, Set):
        _walk(sorted(value, key=repr), sha, leaves)
    elif isinstance(value, (list, tuple)):
        _text(f"sequence:{len(value)}", sha, leaves)
        for item in value:
            _walk(item, sha, leaves)
    else:
        _object(value, sha, leaves)


def _object(value: Any, sha: Any, leaves: list[Leaf]) -> None:
    """What is no container and no number: known by what it offers, so that no library need be imported."""
    kind = type(value)
    _text(f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}", sha, leaves)
    if hasattr(value, "to_dataset"):  # xarray.DataArray
        _walk(value.to_numpy(), sha, leaves)
    elif hasattr(value, "data_vars"):  # xarray.Dataset
        _walk({str(name): value[name].to_numpy() for name in value.variables}, sha, leaves)
    elif hasattr(value, "columns") and hasattr(value, "index"):
        _walk([value.index, *((str(name), value.iloc[:, i]) for i, name in enumerate(value.columns))], sha, leaves)
    elif hasattr(value, "index") and hasattr(value, "to_numpy"):
        _walk([value.index, str(value.dtype), value.to_numpy()], sha, leaves)
    elif hasattr(value, "to_numpy"):  # a pandas index or array, an Arrow array
        _walk(value.to_numpy(), sha, leaves)
    elif hasattr(value, "tocoo"):  # scipy.sparse
        coo = value.tocoo()
        _walk([list(value.shape), coo.row, coo.col, coo.data], sha, leaves)
    elif dataclasses.is_dataclass(value):
        _walk([getattr(value, field.name) for field in dataclasses.fields(value)], sha, leaves)
    else:
        import cloudpickle

        _text(hashlib.sha256(cloudpickle.dumps(value)).hexdigest(), sha, leaves)


def _text(text: str, sha: Any, leaves: list[Leaf]) -> None:
    sha.update(text.encode())
    leaves.append(text)


def _number(value: float | complex, sha: Any, leaves: list[Leaf]) -> None:
    """Like an array of no dimensions."""
    parts = (value.real, value.imag) if isinstance(value, complex) else (float(value),)
    _text(f"{'complex128' if len(parts) == 2 else 'float64'}()", sha, leaves)
    for part in parts:
        sha.update(struct.pack("d", part))
        counts = [float(isnan(part)), float(part == inf), float(part == -inf)]
        finite = part if isfinite(part) else 0.0
        leaves.append([abs(finite), *counts, finite, finite, finite, finite])


def _array(array: np.ndarray[Any, Any], sha: Any, leaves: list[Leaf]) -> None:
    import numpy as np

    _text(f"{array.dtype}{array.shape}", sha, leaves)
    if array.dtype == object:
        for item in array.ravel().tolist():
            _walk(item, sha, leaves)
        return
    flat = np.ascontiguousarray(array).ravel()
    sha.update(flat.view(np.uint8).data)
    if array.dtype.kind == "c":
        leaves += [_numbers(np.real(flat).astype(np.float64)), _numbers(np.imag(flat).astype(np.float64))]
    elif array.dtype.kind == "f":
        leaves.append(_numbers(flat.astype(np.float64)))
    else:
        leaves.append(hashlib.sha256(flat.view(np.uint8).data).hexdigest())


def _numbers(flat: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """[sum of magnitudes, the three counts, sum, sum weighted by position, smallest, largest]: the finite ones'."""
    import numpy as np

    positions = np.flatnonzero(np.isfinite(flat))
    finite = flat[positions]
    counts = [float(np.isnan(flat).sum()), float((flat == np.inf).sum()), float((flat == -np.inf).sum())]
    if not len(finite):
        return [0.0, *counts, 0.0, 0.0, 0.0, 0.0]
    weights = 1 + positions % 997 / 997
    scale = float(np.abs(finite).sum())
    extremes = [float(finite.min()), float(finite.max())]
    sums = [float(finite.sum()), float((finite * weights).sum())]
    return [scale, *counts, *sums, *extremes]
