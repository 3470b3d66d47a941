"""The stages of pipeline.py as an Airflow DAG: put it into a DAGs folder; settings choose Headrace.

AIRFLOW__CORE__EXECUTOR=headrace_airflow.HeadraceExecutor
AIRFLOW__CORE__XCOM_BACKEND=headrace_airflow.HeadraceXCom

With the second setting alone, the same in three times as long.
"""

import time

from airflow.sdk import dag, task


@task
def read(chunks):
    for number in range(chunks):
        time.sleep(0.02)  # from a disk, or a service
        yield list(range(number * 1000, (number + 1) * 1000))


@task
def transform(blocks):
    for block in blocks:
        time.sleep(0.02)
        yield [value for value in block if value % 7 == 0]


@task
def aggregate(blocks):
    total = 0
    for block in blocks:
        time.sleep(0.02)
        total += sum(block)
    return total


@dag(schedule=None)
def pipeline():
    aggregate(transform(read(25)))


pipeline()
