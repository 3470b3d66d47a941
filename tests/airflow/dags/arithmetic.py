"""Two tasks, the second of which reads what the first has returned."""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None)
def arithmetic():
    @task
    def three():
        print("three is made")
        return 3

    @task
    def double(number):
        return 2 * number

    double(three())


arithmetic()
