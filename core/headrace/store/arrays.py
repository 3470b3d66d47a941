"""How numpy arrays travel that numpy itself would pickle into the byte stream, copy upon copy.

numpy hands out buffers for contiguous arrays of plain types only. Here strided arrays are made contiguous first, dates
travel as integers, arrays whose axes are in neither C's nor Fortran's order are transposed to it and back, and arrays
that repeat (``np.broadcast_to``, hence ``dask.array.ones``) travel as what they repeat. Subclasses that add nothing to
the numbers (``np.matrix``, ``np.recarray``, ``np.memmap``) travel as the array below, masked arrays as two. A memmap
that writes into its file travels as the place in that file: what a task writes into it must get there.
This module imports numpy only where an array proves that it is there.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from typing import Any


def reducers(numpy: Any) -> dict[type, Callable[[Any], Any]]:
    """By type, for what ``numpy`` itself has."""
    views = dict.fromkeys((numpy.matrix, numpy.recarray), reduce_view)
    return {numpy.ndarray: reduce_array, numpy.memmap: reduce_memmap, **views}


def masked_reducers(masked: Any) -> dict[type, Callable[[Any], Any]]:
    """By type, for what ``numpy.ma`` has."""
    return {masked.MaskedArray: reduce_masked}


def reduce_view(array: Any) -> Any:
    """The ``__reduce__`` of exact instances of a subclass that keeps nothing of its own."""
    return _view, (array.view(sys.modules["numpy"].ndarray), type(array))


def reduce_memmap(array: Any) -> Any:
    """The ``__reduce__`` of exact memmaps."""
    writes = array.mode in ("r+", "w+") and array.flags.writeable and array.size
    if not (writes and array.filename and os.path.exists(array.filename) and all(s > 0 for s in array.strides)):
        return reduce_view(array)
    numpy = sys.modules["numpy"]
    whole = numpy.frombuffer(array._mmap, "u1")
    start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + _address(array) - _address(whole)
    return _map_again, (array.filename, start, array.dtype, array.shape, array.strides)


def reduce_masked(array: Any) -> Any:
    """The ``__reduce__`` of exact masked arrays over plain ones."""
    numpy = sys.modules["numpy"]
    if array.dtype.hasobject or array.baseclass is not numpy.ndarray:
        return array.__reduce__()
    mask = None if array.mask is sys.modules["numpy.ma"].nomask else array.mask
    return _mask, (type(array), array.data, mask, array._fill_value, array.hardmask)


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


def _view(array: Any, kind: type) -> Any:
    return array.view(kind)


def _address(array: Any) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _map_again(filename: str, start: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    numpy = sys.modules["numpy"]
    length = dtype.itemsize + sum([(n - 1) * stride for n, stride in zip(shape, strides, strict=True)])
    whole = numpy.memmap(filename, "u1", "r+", start, (length,))
    array = numpy.ndarray(shape, dtype, whole, 0, strides).view(numpy.memmap)
    for name in ("_mmap", "filename", "offset", "mode"):  # a view of an array that is no memmap has none
        setattr(array, name, getattr(whole, name))
    return array


def _mask(kind: type, data: Any, mask: Any, fill_value: Any, hard: bool) -> Any:
    array = kind(data, hard_mask=hard) if mask is None else kind(data, mask=mask, hard_mask=hard)
    if fill_value is not None:
        array.fill_value = fill_value
    return array


def _repeat(array: Any, shape: tuple[int, ...]) -> Any:
    return sys.modules["numpy"].broadcast_to(array, shape)


def _transpose(array: Any, axes: tuple[int, ...]) -> Any:
    return array.transpose(axes)


def _as_dates(array: Any, dtype: Any) -> Any:
    return array.view(dtype)
