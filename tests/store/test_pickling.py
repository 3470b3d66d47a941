"""Packing: what travels, in how many bytes, by which pickler; and what an error says when it cannot."""

from __future__ import annotations

import copyreg
import fractions
import functools
import importlib
import pickle
import subprocess
import sys
import threading
import types
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse as sp

from headrace.errors import UnpicklableError
from headrace.store.pickling import BYTES_OUT_OF_BAND_FROM, OUT_OF_BAND_FROM, pack, register_reducer, unpack

BIG = 20_000


def through(value: Any, *, writable: bool = True) -> Any:
    """Packs and unpacks as two processes would: nothing of the original's memory is shared."""
    data, buffers = pack(value)
    assert len(data) < 20_000, "what is large must be out of band"
    assert all(b.ndim == 1 and b.format == "B" and b.c_contiguous for b in buffers)
    assert all(b.nbytes >= OUT_OF_BAND_FROM for b in buffers)
    copies = [bytearray(b) if writable else bytes(b) for b in buffers]
    return unpack(data, copies)


def in_arrow(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column of text as pandas stores it from version 3 on; before, each text was an object of its own."""
    return column.astype("string[pyarrow]") if column.dtype == object else column


def frozen(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


ARRAYS = {
    "C": np.arange(float(BIG)).reshape(100, -1),
    "F": np.asfortranarray(np.arange(float(BIG)).reshape(100, -1)),
    "strided": np.arange(2.0 * BIG)[::2],
    "reversed": np.arange(float(BIG))[::-1],
    "inner block": np.arange(float(4 * BIG)).reshape(200, -1)[50:150, 7:107],
    "transposed": np.arange(float(BIG)).reshape(10, 20, -1).transpose(1, 2, 0),
    "broadcast": np.broadcast_to(np.arange(100.0), (1000, 100)),
    "one everywhere": np.broadcast_to(1.5, (300, 400)),
    "writable overlap": np.lib.stride_tricks.as_strided(np.arange(100.0), (1000, 100), (0, 8)),
    "dates": np.arange(BIG).astype("M8[ns]"),
    "strided spans": np.arange(BIG).astype("m8[s]").reshape(100, -1)[::2, ::3],
    "records": np.zeros(BIG, [("a", "i4"), ("b", "f8")]),
    "half": np.arange(BIG).astype("f2"),
    "text": np.full(BIG, "naïve"),
    "bytes": np.full(BIG, b"abc"),
    "big-endian": np.arange(BIG, dtype=">i8"),
    "bool": np.arange(BIG) % 3 == 0,
    "read-only": frozen(np.arange(float(BIG))),
    "read-only strided": frozen(np.arange(2.0 * BIG))[::2],
    "small": np.arange(3),
    "small strided": np.arange(10)[::3],
    "date without dimensions": np.array("2020-01-01", "M8[D]"),
    "no dimensions": np.array(3.5),
    "empty": np.empty((0, 5)),
    "empty strided": np.empty((10, 5))[::2][5:],
    "empty dates": np.empty(0, "M8[ns]"),
    "void": np.zeros(3, "V0"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(kind: str) -> None:
    array = ARRAYS[kind]
    back = through(array)
    assert type(back) is np.ndarray
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable == array.flags.writeable
    contents = array.size if 0 not in array.strides or array.flags.writeable else 100
    assert sum(b.nbytes for b in pack(array).buffers) in (0, contents * array.itemsize)


def test_arrays_of_objects_and_subclasses() -> None:
    mixed = np.array([1, "two", None], dtype=object)
    np.testing.assert_array_equal(through(mixed), mixed)
    masked = np.ma.masked_array(np.arange(5), mask=[0, 1, 0, 0, 1])
    back = through(masked)
    assert type(back) is type(masked)
    assert back.tolist() == masked.tolist()


def test_views_of_one_array_stay_views_of_one_array_within_a_value() -> None:
    array = np.arange(float(BIG))
    first, second = through([array, array])
    assert first is second


def test_an_array_stands_on_its_buffer() -> None:
    data, buffers = pack(np.arange(float(BIG)))
    memory = bytearray(buffers[0])
    array = unpack(data, [memory])
    memory[:8] = b"\xff" * 8
    assert np.isnan(array[0])


def test_arrays_inside_cloudpickled_functions_are_out_of_band() -> None:
    array = np.arange(2.0 * BIG)[::2]
    assert through(lambda: array)().sum() == array.sum()


def test_frames() -> None:
    frame = pd.DataFrame(
        {
            "number": range(BIG),
            "text": in_arrow(pd.Series([f"row {n}" for n in range(BIG)])),
            "time": pd.date_range("2020", periods=BIG, freq="s"),
            "zoned": pd.date_range("2020", periods=BIG, freq="s", tz="Europe/Berlin"),
            "kind": pd.Categorical(["a", "b"] * (BIG // 2)),
            "maybe": pd.array([1, None] * (BIG // 2), dtype="Int64"),
        }
    )
    pd.testing.assert_frame_equal(through(frame), frame)
    pd.testing.assert_frame_equal(through(frame[frame.number % 3 == 0]), frame[frame.number % 3 == 0])
    pd.testing.assert_frame_equal(through(frame.set_index("text")), frame.set_index("text"))
    pd.testing.assert_series_equal(through(frame.text), frame.text)
    back = through(frame)
    back.loc[3, "number"] = -1
    assert back.number[3] == -1


def test_arrow() -> None:
    table = pa.table({"number": np.arange(BIG), "text": [f"row {n}" for n in range(BIG)]}, metadata={"a": "b"})
    assert through(table, writable=False).equals(table, check_metadata=True)
    assert through(table.column("text")).equals(table.column("text"))
    assert through(table.to_batches()[0]).equals(table.to_batches()[0])


@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
def test_sparse(layout: str) -> None:
    matrix = sp.random(1000, 1000, 0.05, format=layout, random_state=1)
    back = through(matrix)
    assert type(back) is type(matrix)
    assert (back != matrix).nnz == 0


@pytest.mark.parametrize("size", [0, 10, BYTES_OUT_OF_BAND_FROM - 1, BYTES_OUT_OF_BAND_FROM, 1_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes(kind: type, size: int) -> None:
    value = kind(b"x" * size)
    data, buffers = pack(value)
    assert [b.nbytes for b in buffers] == ([size] if size >= BYTES_OUT_OF_BAND_FROM else [])
    back = unpack(data, [bytearray(b) for b in buffers])
    assert type(back) is kind
    assert back == value


def test_bytes_after_something_was_pickled_by_value() -> None:
    importlib.import_module("multiprocessing")  # which makes ``__mp_main__`` another name of ``__main__``
    pack(lambda: None)
    assert len(pack(b"x" * BYTES_OUT_OF_BAND_FROM).buffers) == 1


def test_small_buffers_stay_in_the_stream() -> None:
    assert pack(np.zeros(OUT_OF_BAND_FROM - 1, "u1")).buffers == []
    assert len(pack(np.zeros(OUT_OF_BAND_FROM, "u1")).buffers) == 1


def square(x: int) -> int:
    return x * x


def test_importable_functions_travel_by_name() -> None:
    data, _ = pack(functools.partial(fractions.Fraction, 3))
    assert len(data) < 100
    assert "cloudpickle" not in str(data)


def test_local_functions_and_classes_travel_by_value() -> None:
    factor = 3

    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    assert through(lambda x: x * factor)(5) == 15
    assert through(Point(4)).x == 4


MAIN = """
import dataclasses, sys
from headrace.store.pickling import pack
@dataclasses.dataclass
class Point:
    x: int
    def double(self): return helper(self.x)
def helper(x): return 2 * x
sys.stdout.buffer.write(pack([helper, Point(4), {"nested": (Point,)}]).data)
"""


def test_what_stands_in_main_travels_by_value() -> None:
    data = subprocess.run([sys.executable, "-c", MAIN], check=True, capture_output=True, timeout=60).stdout
    helper, point, nested = unpack(data)
    assert helper(4) == point.double() == 8
    assert nested["nested"][0](1).x == 1


def test_modules_registered_by_value_travel_by_value() -> None:
    import cloudpickle

    module = types.ModuleType("headrace_not_on_disk")
    exec("def triple(x): return 3 * x", module.__dict__)
    sys.modules[module.__name__] = module
    cloudpickle.register_pickle_by_value(module)
    try:
        data = pack(module.triple).data
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules[module.__name__]
    assert unpack(data)(4) == 12


class Guarded:
    """Stands for an adapter's lock."""

    def __init__(self, token: str) -> None:
        self.token = token


def make_guarded(token: str) -> Guarded:
    return Guarded(f"remote {token}")


@pytest.mark.parametrize("by_value", [False, True])
def test_registered_reducers_are_used_by_both_picklers(by_value: bool) -> None:
    register_reducer(Guarded, lambda obj: (make_guarded, (obj.token,)))
    guarded = Guarded("a")
    back = through(lambda: guarded)() if by_value else through([guarded])[0]
    assert back.token == "remote a"
    assert pickle.loads(pickle.dumps(guarded)).token == "a", "only Headrace's pickling may change"


def test_a_reducer_that_raises_keeps_the_object_here() -> None:
    def refuse(obj: Guarded) -> Any:
        raise TypeError(f"the lock {obj.token} must stay")

    register_reducer(Guarded, refuse)
    with pytest.raises(UnpicklableError, match=r"^\['x'\]: the lock a must stay$") as caught:
        pack({"x": Guarded("a")})
    assert type(caught.value.__cause__) is TypeError


def test_reducers_of_copyreg_are_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, Guarded, lambda obj: (make_guarded, ("copyreg",)))
    assert through(Guarded("a")).token == "remote copyreg"


class Holder:
    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Stateful:
    def __getstate__(self) -> dict[str, Any]:
        return {"made_up": threading.Lock()}


class Refusing:
    def __reduce__(self) -> Any:
        raise ValueError("not today")


class Opaque:
    """Nothing about it can be asked."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return object.__getattribute__(self, name)
        raise RuntimeError(f"no {name} for you")


class Sequence(list[Any]):
    pass


LOCK = threading.Lock()
NO_LOCK = "cannot pickle '_thread.lock' object"


def closure() -> Any:
    lock = LOCK
    return lambda: lock


def default(x: Any = LOCK) -> Any:
    return x


default.__module__ = "__main__"  # as if it stood in a script: it travels by value


def use_global() -> Any:
    return LOCK


use_global.__module__ = "__main__"


def deep(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


def circular() -> Any:
    value: dict[str, Any] = {}
    value["self"] = value
    value["lock"] = LOCK
    return value


CULPRITS = {
    "itself": (LOCK, f"_thread.lock object: {NO_LOCK}"),
    "call, args": ((len, (1, {"lock": Holder(LOCK)}), None, ()), f"args[1]['lock'].inner: {NO_LOCK}"),
    "call, kwargs": ((len, (1,), {"key": [0, LOCK]}, ()), f"kwargs['key'][1]: {NO_LOCK}"),
    "call, function": ((closure(), (), None, ()), f"function.<closure variable 'lock'>: {NO_LOCK}"),
    "default": ([default], f"[0].__defaults__[0]: {NO_LOCK}"),
    "global": ([use_global], f"[0].<global variable 'LOCK'>: {NO_LOCK}"),
    "partial": (functools.partial(len, Holder(LOCK)), f"args[0].inner: {NO_LOCK}"),
    "method": (Holder(Slotted(LOCK)).__init__, f"__self__.inner.inner: {NO_LOCK}"),
    "key": ({Slotted: 1, Holder(LOCK): 2}, f".inner: {NO_LOCK}"),
    "state": (Holder([Stateful()]), f"inner[0].__getstate__()['made_up']: {NO_LOCK}"),
    "list subclass": (Holder(Sequence([1, LOCK])), f"inner[1]: {NO_LOCK}"),
    "ordered": (OrderedDict(a=OrderedDict(b=LOCK)), f"['a']['b']: {NO_LOCK}"),
    "deque": (deque([1, LOCK]), f"[1]: {NO_LOCK}"),
    "exception": ([ValueError("bad", LOCK)], f"[0].args[1]: {NO_LOCK}"),
    "object array": ([np.array([None, LOCK])], f": {NO_LOCK}"),
    "generator": ({"a": (x for x in "abc")}, "['a']: cannot pickle 'generator' object"),
    "refusal": ((1, Refusing()), "[1]: not today (it is of type Refusing)"),
    "opaque": ((1, [Opaque()]), "[1][0]: no __reduce_ex__ for you (it is of type Opaque)"),
    "long list": ([*range(100_000), LOCK, *range(10)], f"[100000]: {NO_LOCK}"),
    "circle": ([circular()], f"[0]['lock']: {NO_LOCK}"),
    "nesting": ((1, deep(100_000)), "nested too deeply to be pickled"),
}


@pytest.mark.parametrize("kind", CULPRITS)
def test_the_error_names_the_path_to_the_culprit(kind: str) -> None:
    value, message = CULPRITS[kind]
    with pytest.raises(UnpicklableError) as caught:
        pack(value)
    text = str(caught.value)
    assert text.endswith(message)
    if message[0] not in "._:n":
        assert text == message
    assert isinstance(caught.value.__cause__, Exception)


def test_the_error_uses_the_name_it_is_given() -> None:
    with pytest.raises(UnpicklableError, match=r"^result\[1\]: cannot pickle"):
        pack([0, LOCK], "result")
    with pytest.raises(UnpicklableError, match=r"^result: cannot pickle"):
        pack(LOCK, "result")


def test_an_interrupt_while_pickling_is_not_taken_for_an_error() -> None:
    class Interrupting:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack([Interrupting()])


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from headrace.store import segments, pickling, ledger; pickling.pack([1, 'a', len]);"
        "pickling.estimate_size([1, 'a']); print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert not {"numpy", "pandas", "pyarrow", "cloudpickle", "dask", "multiprocessing"} & set(done.stdout.split())
