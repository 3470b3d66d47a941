"""The stages of pipeline.py as a dask graph."""

import time

import dask

import headrace_dask  # noqa: F401  (makes the scheduler's name known)


@dask.delayed
def read(chunks):
    for number in range(chunks):
        time.sleep(0.02)  # from a disk, or a service
        yield list(range(number * 1000, (number + 1) * 1000))


@dask.delayed
def transform(blocks):
    for block in blocks:
        time.sleep(0.02)
        yield [value for value in block if value % 7 == 0]


@dask.delayed
def aggregate(blocks):
    total = 0
    for block in blocks:
        time.sleep(0.02)
        total += sum(block)
    return total


total = aggregate(transform(read(25)))
print(total.compute(scheduler="headrace"))  # on dask's own schedulers, the same in three times as long
