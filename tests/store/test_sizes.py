"""Size estimates: right where they are exact, near where they guess, -1 where they would have to look too closely."""

from __future__ import annotations

from typing import Any

import dask.array
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp
import xarray as xr

from headrace.store.pickling import pack
from headrace.store.sizes import estimate_size

N = 10_000
ARRAY = np.arange(float(N))
TEXT = pd.Series([f"r{n}" for n in range(N)])
if TEXT.dtype == object:  # before pandas 3
    TEXT = TEXT.astype("string[pyarrow]")
FRAME = pd.DataFrame({"a": ARRAY, "b": range(N), "c": pd.date_range("2020", periods=N), "d": TEXT})

VALUES: dict[str, Any] = {
    "array": ARRAY,
    "broadcast": np.broadcast_to(ARRAY, (100, N)),
    "strided": ARRAY[::2],
    "frame": FRAME,
    "frame by text": FRAME.set_index("d"),
    "frame by two": FRAME.set_index(["a", "b"]),
    "series": FRAME.a,
    "index": FRAME.set_index("c").index,
    "table": pa.table({"a": ARRAY}),
    "buffer": pa.py_buffer(bytes(N)),
    "csr": sp.random(300, 300, 0.2, format="csr"),
    "coo": sp.random(300, 300, 0.2, format="coo"),
    "dataset": xr.Dataset({"a": ("x", ARRAY)}),
    "bytes": bytes(N),
    "bytearray": bytearray(N),
    "text": "é" * N,
    "pair of arrays": (ARRAY, {"a": ARRAY + 1}),
    "memory": memoryview(ARRAY),
}


@pytest.mark.parametrize("kind", VALUES)
def test_large_values_are_estimated_near_to_what_they_take(kind: str) -> None:
    value = VALUES[kind]
    if kind == "memory":
        assert estimate_size(value) == ARRAY.nbytes
        return
    data, buffers = pack(value)
    packed = len(data) + sum(b.nbytes for b in buffers)
    assert packed / 2 <= estimate_size(value) <= packed * 2


@pytest.mark.parametrize(
    "value", [None, True, 1, 2.5, 1j, "abc", b"abc", (), (1, "a"), {"a": [1, 2]}, {1, 2}, np.float64(1)]
)
def test_small_values_are_small(value: Any) -> None:
    assert 0 < estimate_size(value) < 1000


def test_text_columns_of_objects_are_guessed() -> None:
    frame = pd.DataFrame({"a": pd.Series([f"row {n}" for n in range(N)], dtype=object)})
    assert 10 * N <= estimate_size(frame) <= 100 * N


class Odd:
    @property
    def nbytes(self) -> int:
        raise RuntimeError("not now")


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 1,
        [object()],
        {"a": object()},
        list(range(1000)),
        [[[[[[1]]]]]],
        np.array([None], dtype=object),
        dask.array.ones(10),
        Odd(),
        np.ndarray,
        pd.DataFrame,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_said_cheaply_is_unknown(value: Any) -> None:
    assert estimate_size(value) == -1
