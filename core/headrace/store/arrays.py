"""How numpy arrays travel that numpy itself would pickle into the byte stream, copy upon copy.

numpy hands out buffers for contiguous arrays of plain types only. Here strided arrays are made contiguous first, dates
travel as integers, arrays whose axes are in neither C's nor Fortran's order are transposed to it and back, and arrays
that repeat (``np.broadcast_to``, hence ``dask.array.ones``) travel as what they repeat.
This module imports numpy only where an array proves that it is there.
"""

from __future__ import annotations

import sys
from typing import Any


def reduce_array(array: Any) -> Any:
    """The ``__reduce_ex__`` of exact numpy arrays."""
    if (array.flags.forc and array.dtype.kind not in "Mm") or array.dtype.hasobject:
        return array.__reduce_ex__(5)
    if 0 in array.strides and array.size and not array.flags.writeable:
        once = tuple([slice(None) if stride else slice(1) for stride in array.strides])
        return _repeat, (array[once].copy(), array.shape)
    if not array.flags.forc:
        writeable = array.flags.writeable
        array = array.copy(order="K")
        array.flags.writeable = writeable
        if not array.flags.forc:
            axes = sorted(range(array.ndim), key=array.strides.__getitem__, reverse=True)
            return _transpose, (array.transpose(axes), tuple(map(axes.index, range(array.ndim))))
    if array.dtype.kind in "Mm" and array.ndim:
        return _as_dates, (array.view("i8"), array.dtype)
    return array.__reduce_ex__(5)


def _repeat(array: Any, shape: tuple[int, ...]) -> Any:
    return sys.modules["numpy"].broadcast_to(array, shape)


def _transpose(array: Any, axes: tuple[int, ...]) -> Any:
    return array.transpose(axes)


def _as_dates(array: Any, dtype: Any) -> Any:
    return array.view(dtype)
