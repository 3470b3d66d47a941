"""cloudpickle with Headrace's reducers. Imported at the first need only, because it takes ten milliseconds."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle

from headrace.store.hashes import forbid_hash
from headrace.store.nans import PersistentId
from headrace.store.pickling import dispatch_table, registered_reducers


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle is not annotated
    def __init__(self, file: io.BytesIO, callback: Callable[[pickle.PickleBuffer], bool]) -> None:
        # The C pickler underneath reads this once, in its __init__: set later it would change nothing.
        self.dispatch_table = _dispatch_table()
        super().__init__(file, protocol=5, buffer_callback=callback)

    def reducer_override(self, obj: Any) -> Any:
        if callable(obj):
            forbid_hash(obj)
        return super().reducer_override(obj)


_merged: tuple[Any, Any] = (None, None)
"""A table of ours, and what came of it."""


def _dispatch_table() -> Any:
    global _merged
    ours, merged = dispatch_table(), _merged
    if merged[0] is not ours:
        merged = _merged = ours, ours | dict(cloudpickle.Pickler.dispatch_table) | registered_reducers()
    return merged[1]


def cloud_dumps(
    obj: object, callback: Callable[[pickle.PickleBuffer], bool], persistent_id: PersistentId | None = None
) -> bytes:
    """Pickles by value what cannot be imported; ``callback`` is that of protocol 5's buffers."""
    main = sys.modules.get("__mp_main__")
    if main is not None and main.__name__ == "__mp_main__":  # elsewhere it is another name of ``__main__``
        cloudpickle.register_pickle_by_value(main)  # which cloudpickle knows by that name only
    with io.BytesIO() as file:
        pickler = _Pickler(file, callback)
        if persistent_id is not None:
            pickler.persistent_id = persistent_id
        pickler.dump(obj)
        return file.getvalue()
