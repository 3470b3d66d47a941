"""Headrace as a Dask scheduler.

Importing this registers the name, so that ``dask.config.set(scheduler="headrace")`` and
``compute(scheduler="headrace")`` work; ``headrace_dask.get`` is the scheduler itself. Light on purpose: the runtime is
imported at the first compute.
"""

from __future__ import annotations

from dask.base import named_schedulers

from headrace_dask.scheduler import get

named_schedulers["headrace"] = get

__all__ = ["get"]
