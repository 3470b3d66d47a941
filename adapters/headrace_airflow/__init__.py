"""Airflow on Headrace: an executor whose runtime outlives the scheduler, and an XCom backend in shared memory.

    AIRFLOW__CORE__EXECUTOR=headrace_airflow.HeadraceExecutor

Nothing is imported before it is asked for: task processes, the node daemon and the scheduler each need another part.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"HeadraceExecutor": "headrace_airflow.executor", "HeadraceXCom": "headrace_airflow.xcom"}

__all__ = ["HeadraceExecutor", "HeadraceXCom"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
