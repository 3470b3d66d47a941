"""What means something in one process only: a task that holds such an object runs where the object is.

Locks. ``dask.utils.SerializableLock`` excludes threads of one process; unpickled in another it is a different lock, and
two processes write into one HDF5 file at the same time. dask and xarray know which schedulers that concerns by
identity, take any other for threads, and give it such a lock. So a lock that is met while a task is pickled keeps the
task here (:class:`~headrace.errors.MustStayHere`), and one that translation sees at once marks it as pinned.

The two locks that xarray has for the HDF5 and netCDF *libraries* are another matter: they guard a library that every
process has for itself, so reading may go to other processes, each with its own. Writing holds a lock of the file too.

Stores in memory. The disk shuffle of dask.dataframe buffers in a ``partd.Dict``, which pickles, as a copy: what a task
appended to it elsewhere would be lost. fsspec's memory file system pickles too, as a reference to its class, and each
process has files of its own in it; one that caches its files pickles as no more than the name "memory".
"""

from __future__ import annotations

import _thread
import importlib
from typing import Any, Final

from headrace.errors import MustStayHere
from headrace.store.pickling import register_reducer
from headrace_dask import shared_locks
from headrace_dask.internals import SerializableLock

_XARRAY: Final = "xarray.backends.locks"
_LIBRARY_LOCKS: Final = ("HDF5_LOCK", "NETCDFC_LOCK")
_MEMORY: Final = ("fsspec.implementations.memory", "MemoryFileSystem")
_CACHES: Final = ("CachingFileSystem", "WholeFileCacheFileSystem", "SimpleCacheFileSystem")


def library_lock(name: str) -> Any:
    """This process's own lock for a library that is not thread-safe."""
    return getattr(importlib.import_module(_XARRAY), name)


def _stay_with_lock(lock: Any) -> Any:
    raise MustStayHere(f"a {type(lock).__name__} excludes only within its process, so what holds it must stay there")


def _stay_with_data(store: Any) -> Any:
    raise MustStayHere(f"a {type(store).__qualname__} keeps its data in this process, so what holds it must stay there")


def _reduce_cache(files: Any) -> Any:
    cached = files.fs
    while hasattr(cached, "fs"):
        cached = cached.fs
    kind = type(cached)
    return _stay_with_data(cached) if (kind.__module__, kind.__qualname__) == _MEMORY else files.__reduce__()


def _reduce_xarray_lock(lock: Any) -> Any:
    for name in _LIBRARY_LOCKS:
        if lock.token == getattr(library_lock(name), "token", None):
            return library_lock, (name,)
    return _stay_with_lock(lock)


for _kind in (SerializableLock, type(_thread.allocate_lock()), type(_thread.RLock())):
    register_reducer(_kind, _stay_with_lock)
register_reducer((_XARRAY, "SerializableLock"), _reduce_xarray_lock)
register_reducer(("partd.dict", "Dict"), _stay_with_data)
register_reducer(_MEMORY, _stay_with_data)
for _name in _CACHES:
    register_reducer(("fsspec.implementations.cached", _name), _reduce_cache)
shared_locks.install()
