"""Fingerprints tell what is equal, what is rounded and what is not the same."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr

from headrace_dask.bench.digest import compare, digest

SAMPLES: dict[str, Any] = {
    "scalar": 3,
    "float": 2.5,
    "text": "three",
    "nothing": None,
    "nested": {"a": [1, (2.0, {"b"})], "b": {}},
    "array": np.arange(12.0).reshape(3, 4),
    "integers": np.arange(12),
    "complex": np.array([1 + 2j, 3j]),
    "objects": np.array(["a", None, 1.5], dtype=object),
    "dates": np.array(["2013-01-01", "2013-01-02"], dtype="M8[D]"),
    "frame": pd.DataFrame({"name": ["a", "b"], "value": [1.0, np.nan]}, index=[3, 4]),
    "categories": pd.Series(["a", "b", "a"], dtype="category"),
    "sparse": scipy.sparse.csr_matrix(np.eye(3)),
    "xarray": xr.Dataset({"t": ("x", np.arange(3.0))}, coords={"x": [1, 2, 3]}),
    "data_array": xr.DataArray(np.arange(3.0), dims="x"),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_copy_is_equal(name: str) -> None:
    value = SAMPLES[name]
    copy = pickle.loads(pickle.dumps(value))
    assert compare(digest(value), digest(copy), 0) == "equal"
    assert compare(digest(value, exact=True), digest(copy, exact=True), 0) == "equal"


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_differs_from_every_other(name: str) -> None:
    for other, value in SAMPLES.items():
        if other != name:
            assert compare(digest(SAMPLES[name]), digest(value), 1e-6) == "different"


@pytest.mark.parametrize(
    "changed",
    [
        np.arange(12.0).reshape(4, 3),
        np.arange(12.0, dtype=np.float32).reshape(3, 4),
        np.arange(12.0).reshape(3, 4)[::-1].copy(),
        np.arange(12.0).reshape(3, 4) + 1e-3,
        np.where(np.arange(12.0).reshape(3, 4) == 5, np.nan, np.arange(12.0).reshape(3, 4)),
    ],
    ids=["shape", "dtype", "order", "values", "nan"],
)
def test_arrays_that_differ_in_anything_are_different(changed: Any) -> None:
    assert compare(digest(SAMPLES["array"]), digest(changed), 1e-6) == "different"


def test_a_frame_differs_by_index_column_name_and_value() -> None:
    frame = SAMPLES["frame"]
    for changed in (frame.set_axis([3, 5]), frame.rename(columns={"value": "v"}), frame.assign(value=[1.0, 2.0])):
        assert compare(digest(frame), digest(changed), 1e-6) == "different"


def test_rounding_is_close_only_within_the_tolerance_and_never_when_exactness_is_asked_for() -> None:
    value = np.linspace(1, 2, 1000)
    rounded, changed = value * (1 + 1e-14), value * (1 + 1e-4)
    assert compare(digest(value), digest(rounded), 1e-10) == "close"
    assert compare(digest(value), digest(changed), 1e-10) == "different"
    assert compare(digest(value), digest(rounded), 0) == "different"


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("-inf"), 1.5 - 2j, complex("inf-nanj")])
def test_a_number_is_that_of_an_array_without_dimensions(value: complex) -> None:
    assert digest(value) == digest(np.asarray(value))
    assert compare(digest(value), digest(value * (1 + 1e-14)), 1e-10) != "different"


def test_sets_and_mappings_are_equal_whatever_their_order() -> None:
    assert compare(digest({"a": 1, "b": {3, 1}}), digest({"b": {1, 3}, "a": 1}), 0) == "equal"
