"""Has tasks in worker processes see dask's settings as tasks on threads see them: those of the process that computes.

Much of dask reads its configuration only when a task runs. A worker has the one from files and from the environment;
what a program has set by ``dask.config.set`` follows it there, for each job as it is when its first task is sent.
Values that cannot be pickled stay behind.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, Final

import dask.config

from headrace import companions
from headrace.errors import UnpicklableError
from headrace.store.pickling import pack, unpack

_STAY: Final = frozenset({"scheduler", "pool", "num_workers", "cache", "headrace"})
"""Where and how to compute is another matter in a worker: what a task computes runs inside the task."""

_told: dict[str, Any] = {}
"""In a worker: what it was told last."""


def _state() -> bytes:
    with dask.config.config_lock:
        shared = {name: value for name, value in dask.config.config.items() if name not in _STAY}
        try:
            packed = pack(shared)
        except UnpicklableError:
            packed = pack(_sendable(shared))
        return pickle.dumps((packed.data, [bytes(buffer) for buffer in packed.buffers]), 5)


def _sendable(section: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in section.items():
        try:
            pack(value)
            found[name] = value
        except UnpicklableError:
            if isinstance(value, Mapping):
                found[name] = _sendable(value)
    return found


def _apply(state: bytes) -> None:
    global _told
    data, buffers = pickle.loads(state)
    with dask.config.config_lock:
        _replace(dask.config.config, _told, unpack(data, buffers))
    _told = unpack(data, buffers)  # again: from now on the other one is changed by tasks


def _replace(section: dict[str, Any], before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Puts ``now`` in place of ``before``; what came from elsewhere, like the defaults of a library, stays."""
    for name in before.keys() - now.keys():
        section.pop(name, None)
    for name, value in now.items():
        own, earlier = section.get(name), before.get(name)
        if isinstance(value, dict) and isinstance(own, dict):
            _replace(own, earlier if isinstance(earlier, dict) else {}, value)
        else:
            section[name] = value


companions.share("dask.config", _state, _apply)
