"""How a task makes values of what was stored, or is just being streamed."""

from __future__ import annotations

import io
import pickle
import re
import sys
from collections.abc import Sequence
from typing import Any, Final

_DAG_MODULE: Final = re.compile(r"unusual_prefix_[0-9a-f]+_(?P<stem>.+)")
"""What Airflow calls the module of a DAG file: the digits are a hash of its path, and the path has the version of its
bundle. So the same file has another name after a change, or on another host."""


def unpickle(parts: Sequence[memoryview]) -> Any:
    """The value of which these are the pickle and its buffers; it stands on their memory."""
    data, *buffers = parts
    return _Unpickler(io.BytesIO(data), buffers=buffers).load()


class _Unpickler(pickle.Unpickler):
    """Finds classes of a DAG file also when the file has another path now: see ``_DAG_MODULE``."""

    def find_class(self, module: str, name: str) -> Any:
        match = _DAG_MODULE.fullmatch(module)
        if match is None or module in sys.modules:
            return super().find_class(module, name)
        for other in list(sys.modules):
            found = _DAG_MODULE.fullmatch(other)
            if found is not None and found["stem"] == match["stem"]:
                return super().find_class(other, name)
        raise ModuleNotFoundError(
            f"the value is of {name}, which stands in the DAG file {match['stem']}.py; other DAGs can read such values "
            "only if their classes stand in a module that both import",
            name=module,
        )
