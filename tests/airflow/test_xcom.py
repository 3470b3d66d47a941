"""HeadraceXCom as a task calls it: every kind of value, real store, real processes."""

from __future__ import annotations

import datetime
import gc
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse

from headrace.errors import UnpicklableError
from headrace.testing import wait_until
from headrace_airflow import xcom
from headrace_airflow.bench.processes import has_ended
from headrace_airflow.store.errors import LostValueError
from headrace_airflow.xcom import HeadraceXCom
from headrace_airflow.xcom_reference import PARTS_CLASSNAME, from_row, is_reference

NAMES = {"task_id": "task", "dag_id": "dag", "run_id": "run", "map_index": -1}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("AIRFLOW__HEADRACE__XCOM_PATH", str(tmp_path / "xcom"))
    monkeypatch.setenv("AIRFLOW__HEADRACE__STORE_HOME", str(tmp_path / "node"))
    monkeypatch.setenv("AIRFLOW__HEADRACE__XCOM_MEMORY", "512MiB")
    monkeypatch.setenv("AIRFLOW__HEADRACE__XCOM_GRACE", "0")
    xcom.settings.cache_clear()
    xcom.client.cache_clear()
    xcom._pushed.clear()
    yield tmp_path / "xcom"
    gc.collect()
    status = xcom.client().ask("status")
    if status is not None:
        xcom.client().ask("end")
        xcom.client().close()
        wait_until(lambda: has_ended(status["pid"]), "the service's end")
    xcom.settings.cache_clear()
    xcom.client.cache_clear()


def push(value: Any, key: str = "return_value") -> Any:
    return HeadraceXCom.serialize_value(value, key=key, **NAMES)


def pull(row: Any) -> Any:
    return HeadraceXCom.deserialize_value(types.SimpleNamespace(value=row))


def purge(row: Any) -> None:
    HeadraceXCom.purge(types.SimpleNamespace(value=row))


def is_mapped(address: int) -> bool:
    """Whether there is a file of the store behind this address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split()[0].partition("-")
        if int(first, 16) <= address < int(last, 16):
            return "headrace" in line
    return False


@dataclass
class Point:
    x: int
    y: np.ndarray


FRAME = pd.DataFrame({"a": np.arange(50_000), "b": np.random.default_rng(0).random(50_000), "c": ["text"] * 50_000})


def address_of_frame(frame: pd.DataFrame) -> int:
    return int(frame["b"].to_numpy().__array_interface__["data"][0])


def address_of_array(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize(
    ("value", "same", "address"),
    [
        (np.arange(100_000.0), np.array_equal, address_of_array),
        (np.asfortranarray(np.random.default_rng(0).random((300, 400))), np.array_equal, address_of_array),
        (FRAME, pd.DataFrame.equals, address_of_frame),
        (FRAME.set_index("a")["b"], pd.Series.equals, lambda s: address_of_array(s.to_numpy())),
        (pa.Table.from_pandas(FRAME), pa.Table.equals, lambda t: t["b"].chunk(0).buffers()[1].address),
        (
            scipy.sparse.random(2000, 2000, 0.05, "csr", random_state=0),
            lambda one, other: (one != other).nnz == 0,
            lambda matrix: address_of_array(matrix.data),
        ),
    ],
    ids=["array", "fortran", "frame", "series", "table", "sparse"],
)
def test_data_is_read_where_it_is_stored(
    value: Any, same: Callable[[Any, Any], bool], address: Callable[[Any], int]
) -> None:
    row = push(value)
    assert is_reference(row)
    one, other = pull(row), pull(row)
    assert type(one) is type(value)
    assert same(one, value)
    assert is_mapped(address(one))
    assert address(one) != address(other)


@pytest.fixture(scope="session")
def polars(lasting: Callable[[], AbstractContextManager[None]]) -> Any:
    """Imported, and with its threads at work."""
    with lasting():
        import polars

        polars.DataFrame({"a": range(50_000)}).filter(polars.col("a") % 2 == 0)
    return polars


def address_of_series(series: Any) -> int:
    return int(series.to_arrow().buffers()[1].address)


def test_polars_data_is_read_where_it_is_stored(polars: Any) -> None:
    frame = polars.DataFrame({
        "number": range(50_000), "half": np.arange(50_000) / 2, "text": [f"row {n}" for n in range(50_000)],
        "list": [[n, n] for n in range(50_000)], "gap": [None if n % 3 else n for n in range(50_000)],
        "kind": polars.Series(["a", "b"] * 25_000, dtype=polars.Categorical),
    })  # fmt: skip
    for value in (frame, frame[1000:40_000], frame.filter(frame["number"] % 2 == 0)):
        found = pull(push(value))
        assert found.equals(value)
        assert found.schema == value.schema
        assert is_mapped(address_of_series(found["half"]))
    series = pull(push(frame["half"], "series"))
    assert series.name == "half"
    assert series.equals(frame["half"])
    assert is_mapped(address_of_series(series))


def test_polars_refuses_objects_and_says_so(polars: Any) -> None:
    if polars.__version__.startswith("1.5."):
        pytest.skip("polars 1.5 panics where later ones raise, and a panic is no Exception")
    frame = polars.DataFrame({"any": [Point(1, np.arange(2)), None]}, schema={"any": polars.Object})
    with pytest.raises(UnpicklableError, match=r"return_value\._df: cannot pickle"):
        push(frame)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bfloat16", "bool", "complex64"])
def test_tensors_are_read_where_they_are_stored(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(100_000).to(getattr(torch, dtype)).reshape(100, -1)
    found = pull(push(tensor))
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor)
    assert is_mapped(found.data_ptr())
    assert pull(push(torch.ones(3, requires_grad=True), "gradient")).requires_grad


def test_consumers_may_write_into_what_they_get() -> None:
    row = push(np.zeros(100_000))
    one, other = pull(row), pull(row)
    one += 1
    assert other.sum() == 0
    assert pull(row).sum() == 0
    frame_row = push(FRAME, "frame")
    frame = pull(frame_row)
    frame.loc[0, "b"] = 42.0
    assert pull(frame_row)["b"].equals(FRAME["b"])


@pytest.mark.parametrize(
    "value",
    [
        b"", b"small", bytes(range(256)) * 1000, bytearray(b"x" * 100_000), list(range(100_000)),
        {"k": ["v"] * 100_000},
        {1: np.arange(3)}, OrderedDict(a=1), Exception("message"), range(5), complex(1, 2), float("inf"), "a\0b",
        {(1, 2): "tuple keys"}, pd.Timestamp("2026-01-01"), print, Path("/tmp"), 2**64 - 1, [2**70],
        datetime.datetime.max, datetime.time(1, 2), np.longdouble(1.5), [np.longlong(3), {"at": datetime.time(3)}],
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_any_picklable_value_comes_back(value: Any) -> None:
    row = push(value)
    assert is_reference(row)
    found = pull(row)
    assert type(found) is type(value)
    assert repr(found)[:1000] == repr(value)[:1000]


def test_functions_and_closures_come_back() -> None:
    factor = 3
    assert pull(push(lambda x: x * factor))(2) == 6


def test_small_plain_values_need_no_store() -> None:
    row = push({"a": [1, (2, 3)], "b": None})
    assert pull(row) == {"a": [1, (2, 3)], "b": None}
    assert xcom.client().ask("status") is None


def test_what_stock_has_written_can_be_read() -> None:
    from airflow.sdk.bases.xcom import BaseXCom

    assert pull(BaseXCom.serialize_value((1, {"x": 2}))) == (1, {"x": 2})


def test_the_same_lists_and_none_values() -> None:
    assert pull(push(None)) is None
    assert pull(push([])) == []


def test_what_stock_cannot_show_of_an_argument_fails_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.execution_time import task_runner

    monkeypatch.setattr(task_runner, "_serialize_template_field", task_runner._serialize_template_field)
    endless: list[Any] = []
    endless.append(endless)
    shown = task_runner._serialize_template_field(pull(push(endless)), "op_args")
    assert str(shown).startswith("[[[[")


# Bad values


def test_an_unpicklable_value_is_named_by_its_path() -> None:
    with pytest.raises(UnpicklableError, match=r"XCom 'model' of task 'task' .* model\['inner'\]\[0\]: cannot pickle"):
        push({"inner": [sys._getframe()]}, "model")


def test_a_generator_is_refused_with_advice() -> None:
    with pytest.raises(UnpicklableError, match="return a list"):
        push(x for x in range(3))


class RaisesWhenRead:
    def __reduce__(self) -> Any:
        return _raise, ("cannot be built here",)


def _raise(text: str) -> None:
    raise ZeroDivisionError(text)


def test_a_value_whose_unpickling_raises_raises_that(caplog: pytest.LogCaptureFixture) -> None:
    row = push(RaisesWhenRead())
    with pytest.raises(ZeroDivisionError, match="cannot be built here"):
        pull(row)
    assert "XCom 'return_value' of task 'task'" in caplog.text
    assert pull(push(b"others are untouched", "other")) == b"others are untouched"


def test_classes_of_a_dag_file_are_found_when_its_path_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = (f"unusual_prefix_{digit * 40}_my_dag" for digit in "ab")
    for name in (before, after):
        module = types.ModuleType(name)
        exec("class Result:\n    pass", module.__dict__)
        monkeypatch.setitem(sys.modules, name, module)
    row = push(sys.modules[before].Result())
    assert type(pull(row)) is sys.modules[before].Result
    monkeypatch.delitem(sys.modules, before)
    assert type(pull(row)) is sys.modules[after].Result
    monkeypatch.delitem(sys.modules, after)
    with pytest.raises(ModuleNotFoundError, match=r"stands in the DAG file my_dag\.py"):
        pull(row)


# Multiple outputs


def test_multiple_outputs_are_stored_once() -> None:
    outputs = {"big": np.arange(1_000_000.0), "frame": FRAME, "small": 3, "text": "x", "raw": b"y" * 5000}
    rows = {key: push(value, key) for key, value in outputs.items()}
    before = xcom.client().ask("status")
    whole = push(outputs)
    after = xcom.client().ask("status")
    assert before is not None
    assert after is not None
    assert after["memory_bytes"] - before["memory_bytes"] < 10_000
    assert whole["__data__"]["big"] == rows["big"]
    assert whole["__data__"]["small"] == 3
    found = pull(whole)
    assert list(found) == list(outputs)
    assert np.array_equal(found["big"], outputs["big"])
    assert found["frame"].equals(FRAME)
    assert (found["small"], found["text"], found["raw"]) == (3, "x", b"y" * 5000)


def test_an_output_that_was_changed_after_its_push_is_stored_anew() -> None:
    array = np.zeros(100_000)
    row = push(array, "array")
    array[5] = 1
    whole = push({"array": array})
    assert pull(row).sum() == 0
    assert pull(whole)["array"].sum() == 1


def test_a_new_try_does_not_get_the_outputs_of_the_old_one() -> None:
    first = np.zeros(100_000)
    push(first, "array")
    push(np.ones(100_000), "array")
    assert pull(push({"array": first}))["array"].sum() == 0


# Deletion


def test_purging_gives_up_value_and_copy(store: Path) -> None:
    array = np.zeros(100_000)
    rows = [push(array, "array"), push({"array": array}), push("small", "small")]
    xcom.client().ask("flush")
    assert len(list(store.rglob("*.headrace"))) == 1
    for row in rows:
        purge(row)
    xcom.client().ask("flush")
    assert list(store.rglob("*.headrace")) == []
    with pytest.raises(LostValueError, match="Clear task 'task'"):
        pull(rows[0])


def test_purging_never_raises() -> None:
    for row in (
        None,
        "text",
        {"__classname__": "headrace.XCom", "__version__": 99},
        {"__classname__": PARTS_CLASSNAME},
    ):
        purge(row)
    HeadraceXCom.purge(None)


def test_a_reference_says_nothing_of_the_value() -> None:
    secret = "s3cret" * 2000
    row = push({"password": secret.encode()})
    assert "s3cret" not in repr(row)
    assert len(repr(row)) < 1000
    assert pickle.dumps(from_row(row))
