"""The same program as in plain_python.py, as a dask graph: one line chooses Headrace."""

import dask

import headrace_dask  # noqa: F401  (makes the scheduler's name known)

dask.config.set(scheduler="headrace")


@dask.delayed
def func1(numbers):
    return sum(n * n for n in numbers)


@dask.delayed
def func2(numbers):
    return sum(1 for n in numbers if n % 7 == 0)


@dask.delayed
def func3(squares, sevens):
    return f"{squares} / {sevens} = {squares / sevens:.1f}"


input1 = dask.delayed(range)(300_000)
result1 = func1(input1)
result2 = func2(input1)
result3 = func3(result1, result2)
print(result3.compute())
