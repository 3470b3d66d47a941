"""As imports_late, but a task says how many threads the library shall have: it has to be imported after that."""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None)
def imports_late_and_sets_up():
    @task
    def imports(before):
        import os
        import sys

        os.environ["OMP_NUM_THREADS"] = "1"
        was_there = "scipy" in sys.modules
        import scipy

        return [*before, was_there and scipy.__name__ == "scipy"]

    imports(imports(imports([])))


imports_late_and_sets_up()
