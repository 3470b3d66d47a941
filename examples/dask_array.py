"""An array in chunks: the variance of each column, then the columns in the order of their variance."""

import dask.array as da

import headrace_dask

x = da.arange(4_000_000, chunks=500_000).reshape(-1, 8) % da.array([3, 5, 7, 11, 13, 17, 19, 23])
variance = x.var(axis=0)

order = da.argtopk(variance, 8).compute(scheduler=headrace_dask.get)  # or for one call only
print(order.tolist())
