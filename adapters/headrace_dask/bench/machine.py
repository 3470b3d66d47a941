"""On what a benchmark ran: the machine and the versions, without which its figures say nothing."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

PACKAGES = ("headrace", "dask", "distributed", "ray", "numpy", "pandas", "pyarrow", "scipy", "scikit-learn", "xarray")


def describe_machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
        "threads_of_blas": {
            name: os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name in os.environ
        },
    }


def describe_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


class OthersMeter:
    """How busy the machine was with things that are not ours: figures taken meanwhile are worth less."""

    def __init__(self) -> None:
        self._since = self._now()

    def share(self) -> float:
        """Share of all cores' time since the start that went to processes outside of this one's tree, 0 to 1."""
        wall, busy, ours = (now - then for now, then in zip(self._now(), self._since, strict=True))
        capacity = wall * (os.cpu_count() or 1)
        return max(0.0, min(1.0, (busy - ours) / capacity)) if capacity else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """(wall, CPU time of the whole machine, CPU time of this process and of all its ended descendants), seconds."""
        times = psutil.cpu_times()
        busy = times.user + times.system + times.nice + getattr(times, "steal", 0.0)
        own = os.times()
        return time.monotonic(), busy, own.user + own.system + own.children_user + own.children_system
