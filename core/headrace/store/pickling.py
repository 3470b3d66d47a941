"""Turns values into bytes and buffers and back: pickle protocol 5, large buffers out of band.

The C pickler goes first, because it takes a µs where cloudpickle takes ten; cloudpickle comes in for what must travel
by value: functions and classes of ``__main__``, lambdas, local functions. ``__main__`` is ``__mp_main__`` in children
that ``multiprocessing`` has spawned. When nothing works, the culprit is searched for (:mod:`headrace.store.culprit`)
and named in the error.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from headrace.errors import MustStayHere, UnpicklableError
from headrace.store import arrays, arrow, hashes
from headrace.store.hashes import HashDiffersError, forbid_hash, verdicts
from headrace.store.nans import PersistentId, dump_by_name, shows_nan
from headrace.store.sizes import estimate_size
from headrace.store.unfinished import is_being_imported

OUT_OF_BAND_FROM: Final = 4096
"""A buffer below this size stays in the byte stream: a page and the bookkeeping for it cost more than its copy."""

BYTES_OUT_OF_BAND_FROM: Final = 64 * 1024
"""From this size a value that is plain bytes goes out of band, though protocol 5 does not do that by itself: it saves
one copy into fresh memory (measured: from here on it wins, at 1 MiB by a factor of 2.5)."""

Reducer = Callable[[Any], Any]

_reducers: dict[type, Reducer] = {}
_awaited: dict[tuple[str, str], Reducer] = {}
"""(module, class) → reducer, of classes that had not been imported when this was last looked at."""

_ours: dict[type, Reducer] = {}
_libraries: dict[str, Callable[[Any], dict[type, Reducer]]] = {
    "numpy": arrays.reducers,
    "numpy.ma": arrays.masked_reducers,
    "pyarrow.lib": arrow.reducers,
}
"""Module → what makes our own reducers for its types; of those that had not been imported when this was last looked
at."""

_made: tuple[tuple[int, int], dict[type, Reducer]] | None = None
"""The dispatch table, and how many reducers ``copyreg`` and we had when it was made: with numpy that takes 4 µs."""


class Packed(NamedTuple):
    """A pickled value. ``buffers`` are views of the value's own memory: flat, contiguous, of at least 4 KiB each."""

    data: bytes
    buffers: list[memoryview]

    @property
    def size_bytes(self) -> int:
        """Of the pickle and its buffers."""
        return len(self.data) + sum([buffer.nbytes for buffer in self.buffers])


def register_reducer(kind: type | tuple[str, str], fn: Callable[[Any], Any]) -> None:
    """Has ``fn(obj)`` pickle the instances of exactly this type, as in ``copyreg`` but only for Headrace.

    ``fn`` returns what ``__reduce__`` may return; an exception from it keeps the object, and its task, in its process.

    Args:
        kind: a class, or the names of a module and of a class in it: then nothing is imported for it, and it counts
            from the moment that somebody, perhaps a task, has imported the module.
    """
    if isinstance(kind, tuple):
        _awaited[kind] = fn
    else:
        _add(kind, fn)


def _add(kind: type, fn: Reducer) -> None:
    global _made
    _reducers[kind] = fn
    _made = None


class _Watchful(pickle.Pickler):
    """Looks at the functions and classes that it pickles by name."""

    def reducer_override(self, obj: Any) -> Any:
        if callable(obj) and verdicts.get(id(obj)) != "":  # asked first: this takes a tenth of the time
            forbid_hash(obj)
        return NotImplemented


def pack(obj: Any, name: str = "", called: bool = False) -> Packed:
    """Pickles a value. Thread-safe.

    Args:
        obj: what travels. Its large buffers are not copied: it must not change before they are.
        name: what an error calls the object, for example ``"args"`` or ``"result"``.
        called: a task will call it, or functions in it.

    Raises:
        HashDiffersError: it is called, and calls ``hash()``.
        UnpicklableError: it cannot be pickled; the message has the path to the culprit, ``__cause__`` the reason.
        MustStayHere: the same, raised by a reducer: what holds the culprit must not leave this process.
    """
    buffers: list[memoryview] = []
    try:
        data = _dumps(obj, _collector(buffers), kind=_Watchful if called and not hashes.SEED else pickle.Pickler)
        if not _needs_cloudpickle(data):
            return _keep_nans(obj, Packed(data, buffers), _dumps) if shows_nan(data) else Packed(data, buffers)
    except (MemoryError, HashDiffersError):
        raise
    except Exception:
        pass  # cloudpickle can do more, and if it cannot, its error is the better one
    buffers = []
    from headrace.store.cloud import cloud_dumps

    try:
        data = cloud_dumps(obj, _collector(buffers))
        return _keep_nans(obj, Packed(data, buffers), cloud_dumps) if shows_nan(data) else Packed(data, buffers)
    except (MemoryError, HashDiffersError):
        raise
    except Exception as error:  # pickling runs users' code, which may raise anything
        from headrace.store.culprit import describe

        kind = MustStayHere if isinstance(error, MustStayHere) else UnpicklableError
        raise kind(describe(obj, error, name)) from error


def unpack(data: bytes | memoryview, buffers: Sequence[Any] = ()) -> Any:
    """Builds the value again. Arrays stand directly on the buffers, and are writable if those are."""
    return pickle.loads(data, buffers=buffers)


class _Bytes:
    """Carries plain bytes out of band: they are copied once when read, but never into the byte stream."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return type(self.value), (pickle.PickleBuffer(self.value),)


def _dumps(
    obj: Any,
    callback: Callable[[pickle.PickleBuffer], bool],
    persistent_id: PersistentId | None = None,
    kind: type[pickle.Pickler] = pickle.Pickler,
) -> bytes:
    if type(obj) in (bytes, bytearray) and len(obj) >= BYTES_OUT_OF_BAND_FROM:
        obj = _Bytes(obj)
    table = dispatch_table()
    if persistent_id is None and not _reducers and not _ours and kind is pickle.Pickler:
        return pickle.dumps(obj, 5, buffer_callback=callback)
    file = io.BytesIO()
    pickler = kind(file, 5, buffer_callback=callback)
    if persistent_id is not None:
        pickler.persistent_id = persistent_id  # type: ignore[method-assign]  # spares a class of our own
    pickler.dispatch_table = table
    pickler.dump(obj)
    return file.getvalue()


def _keep_nans(obj: Any, packed: Packed, dumps: Callable[..., bytes]) -> Packed:
    def dump(persistent_id: PersistentId) -> Packed:
        buffers: list[memoryview] = []
        return Packed(dumps(obj, _collector(buffers), persistent_id), buffers)

    named = dump_by_name(dump)
    if named is None:
        return packed
    buffers: list[memoryview] = []
    return Packed(pickle.dumps(named, 5, buffer_callback=_collector(buffers)), buffers)


def registered_reducers() -> dict[type, Reducer]:
    """What :func:`register_reducer` has been given."""
    return _reducers


def dispatch_table() -> dict[type, Reducer]:
    """Type → reducer: those of ``copyreg``, the registered ones, and ours for numpy and pyarrow. Not to be changed."""
    global _made
    if _awaited or _libraries:
        _look_at_imports()
    counts, made = (len(copyreg.dispatch_table), len(_reducers)), _made
    if made is None or made[0] != counts:
        made = _made = counts, _ours | copyreg.dispatch_table | _reducers
    return made[1]


def _look_at_imports() -> None:
    """Makes reducers for what has been imported meanwhile."""
    global _made
    modules = sys.modules
    for names, fn in list(_awaited.items()):
        if names[0] in modules and (kind := getattr(modules[names[0]], names[1], None)) is not None:
            _add(kind, fn)
            _awaited.pop(names, None)
    for name, make in list(_libraries.items()):
        module = modules.get(name)  # None also stands there for what must not be imported
        if module is not None and not is_being_imported(module):
            _ours.update(make(module))
            _libraries.pop(name, None)
            _made = None


def _collector(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    def collect(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < OUT_OF_BAND_FROM:
            return True
        buffers.append(view)
        return False

    return collect


def _needs_cloudpickle(data: bytes) -> bool:
    if b"__main__" in data or b"__mp_main__" in data:
        return True
    cloudpickle = sys.modules.get("cloudpickle")
    return cloudpickle is not None and not cloudpickle.list_registry_pickle_by_value() <= {"__mp_main__"}


__all__ = ["Packed", "dispatch_table", "estimate_size", "pack", "register_reducer", "registered_reducers", "unpack"]
