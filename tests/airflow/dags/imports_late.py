"""Tasks that import a large library when they run, as Airflow advises; each says whether it was there before."""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None)
def imports_late():
    @task
    def imports(before):
        import sys

        was_there = "scipy" in sys.modules
        import scipy

        return [*before, was_there and scipy.__name__ == "scipy"]

    imports(imports(imports([])))


imports_late()
