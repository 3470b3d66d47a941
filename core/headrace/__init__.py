"""Headrace: a drop-in execution backend for Dask graphs, Airflow DAGs and plain Python calls.

    import headrace

    with headrace.Runtime() as rt:
        result1 = rt.submit(func1, input1)            # side by side with func2
        result2 = rt.submit(func2, input1)
        print(rt.submit(func3, result1, result2).result())

    with headrace.trace("run.json"):                  # a timeline of whatever runs inside
        ...

Importing this package imports nothing heavy; the names below are loaded at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.config import Settings
    from headrace.observe.timeline import trace
    from headrace.runtime import Runtime
    from headrace.stream.handle import Stream
    from headrace.stream.resuming import resumable
    from headrace.stream.steps import streamed

__version__ = "0.1.0"
__all__ = ["Runtime", "Settings", "Stream", "__version__", "resumable", "streamed", "trace"]

_HOMES = {
    "Runtime": "headrace.runtime",
    "Settings": "headrace.config",
    "Stream": "headrace.stream.handle",
    "resumable": "headrace.stream.resuming",
    "streamed": "headrace.stream.steps",
    "trace": "headrace.observe.timeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value
