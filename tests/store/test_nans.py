"""numpy.nan stays the object that libraries ask for by identity; other NaNs stay others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from headrace.runtime import Runtime
from headrace.store.pickling import pack, unpack


def through(value: Any) -> Any:
    data, buffers = pack(value)
    return unpack(data, [bytearray(buffer) for buffer in buffers])


def is_nan_of_numpy(value: Any, *, inside: Any = None) -> bool:
    return value is np.nan and (inside is None or inside[0] is np.nan)


def give_nan(nested: bool) -> Any:
    return [np.nan] if nested else np.nan


@pytest.mark.parametrize("nan", [np.nan, math.nan], ids=["numpy", "math"])
def test_well_known(nan: float) -> None:
    value = through([("a", "is", nan), {"fill": nan}])
    assert value[0][2] is nan
    assert value[1]["fill"] is nan


def test_others_are_not_mistaken_for_it() -> None:
    (value,) = through([float("nan")])
    assert math.isnan(value)
    assert value is not np.nan
    assert value is not math.nan


def test_bytes_that_look_like_it() -> None:
    assert through([b"xG\x7f\xf8\0\0\0\0\0\0y", 1.5]) == [b"xG\x7f\xf8\0\0\0\0\0\0y", 1.5]


def test_with_buffers_and_local_functions() -> None:
    array, nan = np.arange(5000.0), np.nan
    data, buffers = pack((array, nan, lambda: nan))
    assert len(buffers) == 1
    copy, same, function = unpack(data, [bytearray(buffer) for buffer in buffers])
    np.testing.assert_array_equal(copy, array)
    assert copy.flags.writeable
    assert same is nan
    assert function() is nan


def test_large_data_is_left_alone() -> None:
    values = [float(number) for number in range(5000)] + [np.nan]
    assert math.isnan(through(values)[-1])


@pytest.mark.parametrize("lane", ["threads", "processes"])
def test_in_tasks(lane: str) -> None:
    with Runtime(lane=lane, num_workers=1) as rt:
        assert rt.submit(is_nan_of_numpy, np.nan).result()
        assert rt.submit(is_nan_of_numpy, np.nan, inside=[np.nan]).result()
        assert rt.submit(is_nan_of_numpy, rt.submit(give_nan, False)).result()
        assert rt.submit(give_nan, False).result() is np.nan
        assert rt.submit(give_nan, True).result()[0] is np.nan
