"""Arrays that are more than plain ones: subclasses of numpy's, masked ones, slices of Arrow data."""

from __future__ import annotations

import copyreg
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.store import pickling
from headrace.store.pickling import pack, register_reducer, unpack

BIG = 20_000


def through(value: Any) -> Any:
    """As two processes would pack and unpack it; what is large must be out of band."""
    data, buffers = pack(value)
    assert len(data) < 2000
    return unpack(data, [bytearray(buffer) for buffer in buffers])


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_subclasses_that_only_look_at_the_numbers(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "file", dtype="f8", mode="w+", shape=(BIG // 10, 10))
    mapped[...] = np.arange(float(BIG)).reshape(-1, 10)
    records: Any = np.rec.fromarrays([np.arange(BIG), np.arange(float(BIG))], names="a,b")
    matrix = np.matrix(np.arange(float(BIG)).reshape(100, -1))
    for array in (mapped, mapped[::2], matrix, matrix.T, records):
        back = through(array)
        assert type(back) is type(array)
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
    assert through(records).a[-1] == BIG - 1
    assert (through(matrix[:2, :2]) * matrix[:2, :2]).tolist() == (matrix[:2, :2] ** 2).tolist()


@pytest.mark.parametrize("mode", ["w+", "r+"])
@pytest.mark.parametrize(
    "view",
    [
        lambda a: a,
        lambda a: a[3:],
        lambda a: a[:, 1],
        lambda a: a[2::3, ::2],
        lambda a: a.T,
        lambda a: a["b"],
        lambda a: a[5:6, 2].reshape(()),
    ],
    ids=["whole", "tail", "column", "strides", "transposed", "field", "scalar"],
)
def test_what_is_written_into_a_mapped_file_gets_there(tmp_path: Path, view: Any, mode: Any) -> None:
    kind = np.dtype([("a", "i4"), ("b", "f8")])
    (tmp_path / "file").write_bytes(bytes(5000 + 12 * 4 * 1000))
    mapped = np.memmap(tmp_path / "file", kind, mode, 5000 if mode == "r+" else 100, (1000, 4))
    mapped["a"] = np.arange(4000).reshape(1000, 4)
    there = through(view(mapped))
    assert type(there) is np.memmap
    np.testing.assert_array_equal(there, view(mapped))
    there[...] = 7
    there.flush()
    assert (view(mapped) == np.array(7, there.dtype)).all()
    again = through(there)
    again[...] = 8
    assert (view(mapped) == np.array(8, there.dtype)).all()


@pytest.mark.parametrize("mode", ["r", "c"])
def test_what_is_not_written_into_its_file_travels_as_numbers(tmp_path: Path, mode: Any) -> None:
    np.arange(float(BIG)).tofile(tmp_path / "file")
    mapped = np.memmap(tmp_path / "file", "f8", mode)
    packed = pack(mapped)
    (tmp_path / "file").unlink()
    np.testing.assert_array_equal(unpack(packed.data, packed.buffers), mapped)
    lost = np.memmap(tmp_path / "lost", "f8", "w+", shape=(BIG,))
    (tmp_path / "lost").unlink()
    assert through(lost).sum() == 0


MASKED: dict[str, Any] = {
    "mask": np.ma.masked_array(np.arange(float(BIG)), mask=np.arange(BIG) % 3 == 0),
    "no mask": np.ma.masked_array(np.arange(float(BIG))),
    "strided": np.ma.masked_array(np.arange(2.0 * BIG), mask=np.arange(2 * BIG) % 3 == 0)[::2],
    "hard, filled with 7": np.ma.masked_array(np.arange(BIG), np.arange(BIG) < 9, hard_mask=True, fill_value=7),
    "dates": np.ma.masked_array(np.arange(BIG).astype("M8[s]"), mask=np.arange(BIG) < 9),
    "records": np.ma.masked_array(np.zeros(BIG, [("a", "i4"), ("b", "f8")]), mask=[(True, False)] * BIG),
}


@pytest.mark.parametrize("kind", MASKED)
def test_masked_arrays(kind: str) -> None:
    array = MASKED[kind]
    back = through(array)
    assert type(back) is np.ma.MaskedArray
    np.testing.assert_array_equal(back.data, array.data)
    np.testing.assert_array_equal(back.mask, array.mask)
    assert (back.mask is np.ma.nomask) == (array.mask is np.ma.nomask)
    assert back.hardmask == array.hardmask
    np.testing.assert_array_equal(back.fill_value, array.fill_value)
    assert back.dtype == array.dtype


def test_masked_objects_and_the_masked_constant() -> None:
    objects = np.ma.masked_array([{"a": 1}, None], mask=[False, True], dtype=object)
    assert through(objects).tolist() == [{"a": 1}, None]
    assert through(np.ma.masked) is np.ma.masked


TEXTS = pa.array([f"text {i}" for i in range(BIG)])
ARROW: dict[str, Any] = {
    "numbers": pa.array(range(BIG)),
    "texts": TEXTS,
    "nulls": pa.array([None, True] * BIG * 10),
    "lists": pa.array([[i, i] for i in range(BIG)]),
    "structs": pa.array([{"a": i, "b": str(i)} for i in range(BIG)]),
    "maps": pa.array([[(str(i), i)] for i in range(BIG)], pa.map_(pa.string(), pa.int64())),
    "dates": pa.array(range(BIG), pa.timestamp("ns", "UTC")),
    "chunks": pa.chunked_array([TEXTS, TEXTS]),
    "batch": pa.RecordBatch.from_pydict({"a": pa.array(range(BIG)), "b": TEXTS}),
    "table": pa.table({"a": pa.array(range(BIG)), "b": TEXTS}).replace_schema_metadata({"by": "me"}),
}


@pytest.mark.parametrize("kind", ARROW)
def test_of_a_small_slice_only_the_slice_travels(kind: str) -> None:
    whole = ARROW[kind]
    part = whole.slice(101, 5)
    assert pack(part).size_bytes < 5000
    back = through(part)
    assert type(back) is type(part)
    assert back.equals(part)
    assert getattr(back, "schema", None) == getattr(part, "schema", None)
    assert pack(whole.slice(10)).size_bytes >= pack(whole).size_bytes - 5000  # as it is, without a copy


def test_the_table_of_reducers_is_made_again_when_there_are_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        pass

    table = pickling.dispatch_table()
    assert pickling.dispatch_table() is table
    register_reducer(Point, lambda obj: (str, ("registered",)))
    try:
        assert through(Point()) == "registered"
        register_reducer(Point, lambda obj: (str, ("again",)))
        assert through(Point()) == "again"
    finally:
        del pickling._reducers[Point]
    monkeypatch.setitem(copyreg.dispatch_table, Point, lambda obj: (str, ("copyreg",)))
    assert through(Point()) == "copyreg"


def test_libraries_count_from_the_moment_that_they_are_imported() -> None:
    code = """
from headrace.store.pickling import dispatch_table, pack
import sys
pack(object()); assert not {"numpy", "pyarrow"} & set(sys.modules)
import numpy
assert len(pack(numpy.matrix(numpy.zeros((100, 100)))).data) < 1000
import pyarrow
assert pyarrow.StringArray in dispatch_table() and numpy.ndarray in dispatch_table()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
