"""On what the benchmark ran: the machine, and the versions of what it depends on."""

from __future__ import annotations

from headrace.observe import conditions

PACKAGES = ("headrace", "apache-airflow", "apache-airflow-task-sdk", "numpy", "pandas", "pyarrow", "psycopg2-binary")

describe_machine = conditions.describe_machine


def describe_versions() -> dict[str, str]:
    """Package → version, of those that are installed."""
    return conditions.describe_versions(PACKAGES)
