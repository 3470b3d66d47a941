"""Keeps ``numpy.nan`` the very object that it is, on its way to another process.

A NaN equals nothing, so libraries ask for it by identity: dask in filters (``val is np.nan``), xarray in fill values.
Pickle makes another float of it. So a small pickle in which a NaN is seen is made once more, with the well-known ones
by name. In a large one nobody looks: there NaNs are data.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

_NAN: Final = b"G\x7f\xf8\0\0\0\0\0\0"
_SMALL_BYTES: Final = 16 * 1024
_MODULES: Final = ("numpy", "math")

PersistentId: TypeAlias = Callable[[Any], "tuple[str, str] | None"]


def shows_nan(data: bytes) -> bool:
    """Whether this is a small pickle that seems to hold a Python float that is NaN."""
    return len(data) <= _SMALL_BYTES and _NAN in data


def dump_by_name(dump: Callable[[PersistentId], tuple[bytes, Sequence[memoryview]]]) -> Any:
    """Pickles with the well-known NaNs by name.

    Args:
        dump: pickles, with this ``persistent_id``, into bytes and buffers.

    Returns:
        what to pickle in place of the value; None if there is no well-known NaN in it.
    """
    found = False

    def name(obj: Any) -> tuple[str, str] | None:
        nonlocal found
        if type(obj) is float and obj != obj:
            for module in _MODULES:
                if obj is getattr(sys.modules.get(module), "nan", None):
                    found = True
                    return module, "nan"
        return None

    data, buffers = dump(name)
    return _ByName(data, buffers) if found else None


class _ByName:
    """Becomes, when it is unpickled, what ``data`` is the pickle of."""

    def __init__(self, data: bytes, buffers: Sequence[memoryview]) -> None:
        self._data = data
        self._buffers = buffers

    def __reduce__(self) -> Any:
        return _load_by_name, (self._data, [pickle.PickleBuffer(buffer) for buffer in self._buffers])


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, name: tuple[str, str]) -> Any:
        module, attribute = name
        return getattr(importlib.import_module(module), attribute)


def _load_by_name(data: bytes, buffers: Sequence[Any]) -> Any:
    return _Unpickler(io.BytesIO(data), buffers=buffers).load()
