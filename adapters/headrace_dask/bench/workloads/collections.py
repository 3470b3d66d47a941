"""dask's own collections, as their documentation shows them: array, bag and dataframe."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .base import Workload


def matmul() -> Any:
    import dask.array as da

    x = da.random.default_rng(1).random((6000, 6000), chunks=(1000, 1000))
    return (x @ x.T + x.T).mean()


def rechunk() -> Any:
    import dask.array as da

    return da.ones((8000, 8000), chunks=(500, 8000)).rechunk((8000, 500)).sum()


@lru_cache(maxsize=1)
def lines() -> list[str]:
    """20,000 lines of 20 words out of 1,000."""
    words = [f"word{i}" for i in range(1000)]
    picks = np.random.default_rng(0).integers(0, len(words), size=(20_000, 20))
    return [" ".join([words[i] for i in row]) for row in picks.tolist()]


def word_count() -> Any:
    import dask.bag as db

    return db.from_sequence(lines(), npartitions=64).map(str.split).flatten().frequencies()


def timeseries(days: int) -> Any:
    import dask.datasets
    import pandas as pd

    end = pd.Timestamp("2000-01-01") + pd.Timedelta(days=days)
    return dask.datasets.timeseries("2000-01-01", str(end.date()), freq="10s", partition_freq="1d", seed=1)


def groupby_mean() -> Any:
    return timeseries(40).groupby("name")[["x", "y"]].mean()


def shuffle() -> Any:
    return timeseries(20).shuffle("id", shuffle_method="tasks")


def sort_rows(frame: Any) -> Any:
    """Rows in an order that depends on their content alone: a shuffle promises none."""
    return frame.reset_index().sort_values([*frame.reset_index().columns]).reset_index(drop=True)


def sort_index(frame: Any) -> Any:
    return frame.sort_index()


WORKLOADS = (
    # BLAS sums in an order that depends on how many threads it has, and worker processes have fewer.
    Workload("matmul", "(x @ x.T + x.T).mean(), 6000 x 6000", matmul, rtol=1e-10),
    Workload("rechunk", "ones (8000, 8000), rechunked, summed", rechunk),
    Workload("wordcount", "bag word count, 64 partitions", word_count, normalise=sorted),
    # The order in which dask adds up the partitions' sums hangs on its random names: even sync differs from itself.
    Workload("groupby40", "timeseries, 40 days, groupby mean", groupby_mean, normalise=sort_index, rtol=1e-10),
    Workload("shuffle20", "timeseries, 20 days, task shuffle", shuffle, normalise=sort_rows),
)
