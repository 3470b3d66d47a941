"""Fingerprints tell what is equal, what is rounded and what is not the same."""

from __future__ import annotations

import pickle
from itertools import permutations
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
    real, imaginary = value.real * (1 + 1e-14), value.imag * (1 + 1e-14)  # a product of complex inf would be NaN
    rounded = complex(real, imaginary) if isinstance(value, complex) else real
    assert compare(digest(value), digest(rounded), 1e-10) != "different"


NOT_FINITE = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize(("value", "other"), list(permutations(NOT_FINITE, 2)))
def test_nan_and_the_infinities_are_three_things(value: float, other: float) -> None:
    for make in (float, np.float32, lambda x: complex(1, x), lambda x: np.array([x, 1.0]), lambda x: [np.full(3, x)]):
        assert compare(digest(make(value)), digest(make(other)), 1e-8) == "different"
        assert compare(digest(make(value)), digest(make(value)), 1e-8) == "equal"


@pytest.mark.parametrize("value", NOT_FINITE)
def test_what_is_not_finite_is_counted_exactly_and_has_its_place(value: float) -> None:
    large = np.full(1000, 1e9)  # so large that a tolerance relative to the sum would allow for thousands more
    one, two, rounded = large.copy(), large.copy(), large * (1 + 1e-14)
    one[3] = two[3] = two[4] = rounded[3] = value
    assert compare(digest(one), digest(two), 1e-8) == "different"
    assert compare(digest(one), digest(rounded), 1e-8) == "close"
    assert compare(digest(np.array([value, 1.0, 2.0])), digest(np.array([1.0, value, 2.0])), 1e-8) == "different"


def test_sets_and_mappings_are_equal_whatever_their_order() -> None:
    assert compare(digest({"a": 1, "b": {3, 1}}), digest({"b": {1, 3}, "a": 1}), 0) == "equal"
