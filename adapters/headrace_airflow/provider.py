"""What Airflow's providers manager is told of this package: its commands and its executor."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """The entry point ``apache_airflow_provider``."""
    return {
        "package-name": "headrace",
        "name": "Headrace",
        "description": "Runs tasks of one machine warm, and hands values over in shared memory",
        "executors": ["headrace_airflow.HeadraceExecutor"],
        "cli": ["headrace_airflow.commands.commands"],
    }
