"""Locks: a task that holds one stays in this process, where the lock excludes what it is meant to exclude.

``dask.utils.SerializableLock`` excludes threads of one process; unpickled in another it is a different lock, and two
processes write into one HDF5 file at the same time. dask and xarray know which schedulers that concerns by identity,
take any other for threads, and give it such a lock. So a lock that is met while a task is pickled keeps the task here
(:class:`~headrace.errors.MustStayHere`), and one that translation sees at once marks it as pinned.

The two locks that xarray has for the HDF5 and netCDF *libraries* are another matter: they guard a library that every
process has for itself, so reading may go to other processes, each with its own. Writing holds a lock of the file too.
"""

from __future__ import annotations

import _thread
import sys
from typing import Any

from headrace.errors import MustStayHere
from headrace.store.pickling import register_reducer
from headrace_dask import shared_locks
from headrace_dask.internals import SerializableLock

_XARRAY = "xarray.backends.locks"
_LIBRARY_LOCKS = ("HDF5_LOCK", "NETCDFC_LOCK")
_watching_xarray = False


def watch() -> None:
    """Has locks keep their tasks here; called at each compute, because xarray may have been imported since the last."""
    global _watching_xarray
    if _watching_xarray:
        return
    module = sys.modules.get(_XARRAY)
    kind = getattr(module, "SerializableLock", None)
    if kind is not None:
        register_reducer(kind, _reduce_xarray_lock)
        _watching_xarray = True


def library_lock(name: str) -> Any:
    """This process's own lock for a library that is not thread-safe."""
    import importlib

    return getattr(importlib.import_module(_XARRAY), name)


def _stay(lock: Any) -> Any:
    raise MustStayHere(f"a {type(lock).__name__} excludes only within its process, so what holds it must stay there")


def _reduce_xarray_lock(lock: Any) -> Any:
    for name in _LIBRARY_LOCKS:
        if lock.token == getattr(library_lock(name), "token", None):
            return library_lock, (name,)
    return _stay(lock)


shared_locks.install()
for _kind in (SerializableLock, type(_thread.allocate_lock()), type(_thread.RLock())):
    register_reducer(_kind, _stay)
