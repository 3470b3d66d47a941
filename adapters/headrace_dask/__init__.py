"""Headrace as a Dask scheduler.

Importing this registers the name, so that ``dask.config.set(scheduler="headrace")`` and
``compute(scheduler="headrace")`` work; ``headrace_dask.get`` is the scheduler itself, and ``headrace_dask.stream``
yields partitions as they get ready. No thread and no process is started before a compute needs one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.config
from dask.base import named_schedulers

from headrace import companions
from headrace_dask import locks, settings  # noqa: F401 - have tasks with locks stay, and settings follow
from headrace_dask.scheduler import get

if TYPE_CHECKING:
    from headrace_dask.streaming import stream

named_schedulers["headrace"] = get
companions.accompany("dask", __name__)
# What a task computes runs inside its worker; dask's own default would start a pool of threads in each of them.
companions.once_in_worker(lambda: dask.config.update_defaults({"scheduler": "headrace"}))

__all__ = ["get", "stream"]


def __getattr__(name: str) -> Any:
    """What not every program uses is loaded when it is asked for: importing this must take little time."""
    if name != "stream":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from headrace_dask.streaming import stream

    globals()[name] = stream
    return stream
