"""Large values from one task to two, side by side, and on to a fourth."""

# mypy: ignore-errors
# A DAG file as people write them: what a task returns stands for its value, which no annotation says.

from __future__ import annotations

from airflow.sdk import dag, task


@task
def make_array(size_bytes):
    import numpy

    return numpy.arange(size_bytes // 8, dtype=numpy.int64)


@task
def make_frame(size_bytes):
    import numpy
    import pandas

    rows = size_bytes // 16
    return pandas.DataFrame({"number": numpy.arange(rows), "half": numpy.arange(rows) / 2})


@task
def smallest(values):
    return float(values.min().min())


@task
def largest(values):
    return float(values.max().max())


@task
def span(low, high):
    return high - low


def diamond(dag_id, make, size_bytes):
    @dag(dag_id=dag_id, schedule=None)
    def graph():
        values = make(size_bytes)
        span(smallest(values), largest(values))

    graph()


diamond("headrace_array_100mb", make_array, 100_000_000)
diamond("headrace_array_1gib", make_array, 1 << 30)
diamond("headrace_frame_100mb", make_frame, 100_000_000)
