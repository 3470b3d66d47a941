"""On what a benchmark ran: the machine and the versions, without which its figures say nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("headrace", "apache-airflow", "apache-airflow-task-sdk", "numpy", "pandas", "pyarrow", "psycopg2-binary")


def describe_machine() -> dict[str, Any]:
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 1e6, 1),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
    }


def describe_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _field(file: str, name: str) -> str:
    with open(file) as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
