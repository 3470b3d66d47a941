"""``func1`` and ``func2`` share nothing and run side by side, ``func3`` reads both: 1 GiB between the stages."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from airflow.sdk import dag, task

LENGTH = (1 << 29) // 8


@task
def func1(first: int) -> Any:
    return np.arange(first, first + LENGTH)


@task
def func2(first: int) -> Any:
    return np.arange(first, first + LENGTH)[::-1]


@task
def func3(result1: Any, result2: Any) -> int:
    began_s = time.monotonic()
    assert result1.nbytes + result2.nbytes == 1 << 30
    result1 += result2  # into a copy of its own
    assert (result1 == result1[0]).all()
    print(f"took {time.monotonic() - began_s:.2f} s")
    return int(result1[0])


@dag(schedule=None)
def gigabyte():
    input1 = 7
    result1 = func1(input1)
    result2 = func2(input1)
    func3(result1, result2)


gigabyte()
