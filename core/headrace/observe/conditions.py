"""Under which conditions something was measured: the machine and the versions, without which figures say nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def describe_machine() -> dict[str, Any]:
    """The machine as this process sees it, with the load of the last minute: to be asked before anything is measured.

    Returns:
        ``cpu`` (its model), ``cores`` (that this process may use), ``memory_gb`` (10^9 bytes), ``kernel``,
        ``load_before``, and ``threads_of_blas`` (what the environment says of them).
    """
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
        "threads_of_blas": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name in os.environ
        },
    }


def describe_versions(packages: Iterable[str]) -> dict[str, str]:
    """``python`` and those of the packages that are installed → version."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _field(path: str, name: str) -> str:
    """The first value of this name in a file of lines ``name : value``."""
    with open(path, encoding="utf-8") as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
