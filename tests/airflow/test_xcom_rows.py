"""What the database keeps: plain values as stock keeps them, references that people can read and nobody can plant."""

from __future__ import annotations

import datetime
import decimal
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_airflow import internals
from headrace_airflow.xcom_native import verdict
from headrace_airflow.xcom_reference import (
    UnknownReferenceError,
    describe,
    from_row,
    is_parts,
    is_reference,
    parts_of,
    readable_size,
    references_in,
    to_parts,
    to_row,
)

INLINE = 1000
RECORD = {
    "id": "0" * 32, "slot": ["dag", "run", "task", -1, "key"], "bytes": 104857792, "type": "numpy.ndarray",
    "shape": "13107200 float64", "url": "/xcom/dag/run/task/-1/key.headrace",
}  # fmt: skip

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(plain)
def test_small_plain_data_stays_and_comes_back_the_same(value: Any) -> None:
    assert verdict(value, 1 << 20) == "stock"
    from airflow.sdk.bases.xcom import BaseXCom

    row = json.loads(json.dumps(BaseXCom.serialize_value(value), allow_nan=False))
    assert BaseXCom.deserialize_value(type("Result", (), {"value": row})) == value


@pytest.mark.parametrize(
    "value",
    [
        (1, 2), {1, 2}, frozenset([1]), {1: "keys that are not text become text"}, {1: "x" * 5000},
        datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), datetime.timedelta(1), decimal.Decimal("1.5"),
        np.float64(1.5), np.int32(3), [np.bool_(True)],
    ],
    ids=repr,
)  # fmt: skip
def test_what_stock_keeps_in_its_own_way_it_goes_on_to_keep(value: Any) -> None:
    assert verdict(value, INLINE) == "stock"


@pytest.mark.parametrize(
    "value",
    [
        b"bytes", float("nan"), [float("inf")], "a\0b", "\ud800", {"__classname__": "x"}, {"a": {"__var": 1}},
        {(1, 2): 3}, np.zeros(3), np.array(3), np.float64("nan"), np.complex128(1j), np.str_("x"),
        np.datetime64("2026-01-01"), pd.DataFrame({"a": [1]}), object(), "x" * 2000, list(range(2000)), Exception("x"),
        2**63, [-(2**64)], decimal.Decimal("nan"), decimal.Decimal(2**70), datetime.datetime.max,
        datetime.datetime.min,
    ],
    ids=lambda value: f"{type(value).__name__}-{repr(value)[:20]!a}",
)  # fmt: skip
def test_everything_else_goes_to_the_store(value: Any) -> None:
    assert verdict(value, INLINE) == "store"


def test_a_list_in_itself_goes_to_the_store() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert verdict(endless, INLINE) == "store"


def test_no_code_of_the_value_runs_while_it_is_looked_at() -> None:
    class Trap(dict[str, Any]):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

        def __iter__(self) -> Any:
            raise AssertionError("iterated")

    assert verdict([Trap()], INLINE) == "store"


def test_no_code_of_its_class_runs_either() -> None:
    class Kind(type):
        __hash__ = type.__hash__

        def __eq__(cls, other: object) -> bool:
            raise AssertionError("compared")

    assert verdict(Kind("Odd", (), {"__module__": None})(), INLINE) == "store"


def test_a_reference_comes_back_from_json() -> None:
    row = json.loads(json.dumps(to_row(RECORD)))
    assert is_reference(row)
    assert from_row(row) == RECORD


@pytest.mark.parametrize("row", [None, 3, "text", [], {}, {"__classname__": "builtins.tuple"}, {"type": "x"}])
def test_other_values_are_no_references(row: Any) -> None:
    assert not is_reference(row)


def test_a_reference_of_a_newer_version_is_refused() -> None:
    with pytest.raises(UnknownReferenceError, match="another version"):
        from_row({**to_row(RECORD), "__version__": 2})


@pytest.mark.parametrize("data", [None, [], {}, {"id": "x"}, {**RECORD, "slot": []}, {**RECORD, "slot": 5}])
def test_a_damaged_reference_is_refused(data: Any) -> None:
    with pytest.raises(UnknownReferenceError, match="damaged"):
        from_row({**to_row(RECORD), "__data__": data})


def test_the_parts_of_a_value_come_back_from_json() -> None:
    parts = {"stored": to_row(RECORD), "plain": 3}
    row = json.loads(json.dumps(to_parts(parts)))
    assert is_parts(row)
    assert not is_reference(row)
    assert parts_of(row) == parts
    assert references_in(row) == [to_row(RECORD)]


def test_parts_of_a_newer_version_or_damaged_ones_are_refused() -> None:
    with pytest.raises(UnknownReferenceError, match="another version"):
        parts_of({**to_parts({}), "__version__": 2})
    with pytest.raises(UnknownReferenceError, match="damaged"):
        parts_of({**to_parts({}), "__data__": [1]})


def test_references_are_found_in_rows_of_newer_versions_too() -> None:
    newer = {**to_row(RECORD), "__version__": 2}
    assert references_in(newer) == [newer]
    assert references_in({**to_parts({"part": newer}), "__version__": 2}) == [newer]


def test_the_api_server_shows_a_summary_without_looking_for_a_class() -> None:
    from airflow.serialization.stringify import stringify

    shown = stringify(to_row(RECORD))
    assert isinstance(shown, str)
    shown = shown.replace("'", "").replace(", ", ",")  # releases differ
    assert shown.startswith("headrace.XCom@version=1(type=numpy.ndarray,shape=13107200 float64,size=100.0 MiB,")


@pytest.mark.skipif(not internals.assigns_ids(), reason="Airflow reserves such keys from 3.3 on")
def test_nobody_can_plant_a_reference_through_the_rest_api() -> None:
    from airflow.api_fastapi.core_api.datamodels.xcom import XComCreateBody, XComUpdateBody
    from pydantic import ValidationError

    for value in (to_row(RECORD), json.dumps(to_row(RECORD)), {"inner": [to_row(RECORD)]}):
        with pytest.raises(ValidationError, match="reserved"):
            XComCreateBody(key="key", value=value)
        with pytest.raises(ValidationError, match="reserved"):
            XComUpdateBody(value=value)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (100 << 20, "100.0 MiB"), (1 << 50, "1024.0 TiB")],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert readable_size(size) == text


class Unfriendly:
    @property
    def shape(self) -> Any:
        raise RuntimeError("not now")


@pytest.mark.parametrize(
    ("value", "kind", "shape"),
    [
        (np.zeros((2, 3)), "numpy.ndarray", "2 × 3 float64"),
        (pd.DataFrame({"a": [1], "b": [2]}), "pandas.DataFrame", "1 × 2"),
        (pa.table({"a": [1]}), "pyarrow.lib.Table", "1 rows × 1 columns"),
        (b"abc", "bytes", "3 long"),
        ([1, 2], "list", "2 items"),
        (Unfriendly(), f"{__name__}.Unfriendly", ""),
        (3, "int", ""),
    ],
)
def test_values_are_described_by_type_and_shape(value: Any, kind: str, shape: str) -> None:
    found_kind, found_shape = describe(value)
    assert found_kind.replace("pandas.core.frame", "pandas") == kind
    assert found_shape == shape
