"""Arrays as scientists use them: climate, linear algebra, images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Workload


def make_weather(block_info: Any = None) -> NDArray[np.float32]:
    """Temperatures with a season and noise; every block has its own seed, so any scheduler makes the same."""
    location = block_info[None]["array-location"]
    days = np.arange(*location[0], dtype=np.float32)[:, None, None]
    latitude = np.arange(*location[1], dtype=np.float32)[None, :, None]
    shape = tuple(stop - start for start, stop in location)
    noise = np.random.default_rng([start for start, _ in location]).standard_normal(shape, dtype=np.float32)
    season = np.sin(days * np.float32(2 * np.pi / 365.25)) * (latitude - 45) / 5
    return np.asarray(15 + season + noise, dtype=np.float32)


def climatology() -> Any:
    """Monthly means of five years of daily temperatures, and how far each month strays from them.

    xarray's anomalies make 15,000 tasks of this: much of the time goes to dask and the scheduler, not to arithmetic.
    """
    import dask.array as da
    import pandas as pd
    import xarray as xr

    time = pd.date_range("2000-01-01", periods=1825, freq="D")
    data = da.map_blocks(
        make_weather, chunks=((365,) * 5, (45, 45), (180,)), dtype=np.float32, meta=np.empty((0, 0, 0), np.float32)
    )
    field = xr.DataArray(data, dims=("time", "lat", "lon"), coords={"time": time}, name="temperature")
    monthly = field.groupby("time.month").mean("time")
    anomaly = field.groupby("time.month") - monthly
    return xr.Dataset({"climatology": monthly, "spread": anomaly.std("time")})


def svd() -> Any:
    """Tall and skinny: QR of 10 blocks, then of their stacked R."""
    import dask.array as da

    x = da.random.default_rng(2).random((100_000, 60), chunks=(10_000, 60))
    u, s, v = da.linalg.svd(x)
    return s, abs(u).sum(axis=0), abs(v)  # signs of singular vectors are arbitrary


def make_image(block_info: Any = None) -> NDArray[np.float32]:
    location = block_info[None]["array-location"]
    rows = np.arange(*location[0], dtype=np.float32)[:, None]
    columns = np.arange(*location[1], dtype=np.float32)[None, :]
    stripes = np.sin(rows / 37) * np.cos(columns / 53)
    noise = np.random.default_rng([start for start, _ in location]).standard_normal(stripes.shape, dtype=np.float32)
    return np.asarray(stripes + noise * 0.3, dtype=np.float32)


def images() -> Any:
    """Denoise, smooth and find the edges of a 2,000 x 2,000 picture, then histogram them."""
    import dask.array as da
    from scipy import ndimage

    sizes = (500,) * 4
    picture = da.map_blocks(make_image, chunks=(sizes, sizes), dtype=np.float32, meta=np.empty((0, 0), np.float32))
    clean = picture.map_overlap(partial(ndimage.median_filter, size=3), depth=1, boundary="reflect", dtype=np.float32)
    smooth = clean.map_overlap(partial(ndimage.gaussian_filter, sigma=2), depth=8, boundary="reflect", dtype=np.float32)
    edges = smooth.map_overlap(
        partial(ndimage.generic_gradient_magnitude, derivative=ndimage.sobel),
        depth=1,
        boundary="reflect",
        dtype=np.float32,
    )
    counts, _ = da.histogram(edges, bins=64, range=(0, 2))
    return counts, edges.max(), (edges > 0.5).mean()


WORKLOADS = (
    Workload("climatology", "xarray climatology, 5 years daily", climatology, requires=("xarray",)),
    # LAPACK's rounding depends on how many threads BLAS has.
    Workload("svd", "SVD of 100,000 x 60", svd, rtol=1e-8),
    Workload("images", "scipy.ndimage filters, map_overlap", images, requires=("scipy",)),
)
