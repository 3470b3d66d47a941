"""The scheduler: how it is named, what it computes, which keywords it takes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import multiprocessing.pool
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from operator import add
from pathlib import Path
from typing import Any

import dask
import pytest
from dask import delayed
from dask._task_spec import Task, TaskRef

import headrace_dask
from headrace.config import LANES
from headrace.errors import ConfigError, CycleError, MissingKeyError
from headrace.runtime import Runtime
from headrace.testing import TaskError, collect, fail, get_pid, identity, inc, meet, slow, sum_up
from headrace_dask import get

pytestmark = pytest.mark.shares_runtime

DIAMOND = {"x": 1, "l": (inc, "x"), "r": (add, "x", 10), "out": (add, "l", "r")}


def python(code: str, **environment: str) -> str:
    """Runs a program of its own and gives back what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- names ------------------------------------------------------------------------------------------------------------


def test_name_and_function_are_the_same_scheduler() -> None:
    with dask.config.set(scheduler="headrace"):
        assert dask.base.get_scheduler() is get
    assert dask.base.get_scheduler(scheduler="Headrace") is get
    assert dask.base.get_scheduler(scheduler=get) is get
    assert delayed(inc)(1).compute(scheduler="headrace") == 2
    assert delayed(inc)(1).compute(scheduler=headrace_dask.get) == 2


def test_scheduler_pickles_as_itself() -> None:
    assert pickle.loads(pickle.dumps(get)) is get


def test_configured_by_environment_and_yaml(tmp_path: Path) -> None:
    code = "import dask, headrace_dask, os; print(os.getpid() == dask.delayed(os.getpid)().compute())"
    assert python(code, DASK_SCHEDULER="headrace", DASK_HEADRACE__LANE="processes") == "False"
    assert python(code, DASK_SCHEDULER="headrace", DASK_HEADRACE__LANE="inline") == "True"
    (tmp_path / "dask.yaml").write_text("scheduler: headrace\nheadrace:\n  lane: processes\n  num-workers: 1\n")
    assert python(code, DASK_CONFIG=str(tmp_path)) == "False"


def test_environment_goes_before_dask_configuration() -> None:
    code = "import dask, headrace_dask, os; print(os.getpid() == dask.delayed(os.getpid)().compute())"
    settings = {"DASK_SCHEDULER": "headrace", "DASK_HEADRACE__LANE": "processes"}
    assert python(code, HEADRACE_LANE="inline", **settings) == "True"


def test_setting_ends_with_its_context() -> None:
    dsk = {"a": (threading.get_ident,)}
    with dask.config.set({"headrace.lane": "threads"}):
        assert get(dsk, "a") != threading.get_ident()
    with dask.config.set({"headrace.lane": "inline"}):
        assert get(dsk, "a") == threading.get_ident()
    assert get(dsk, "a", lane="inline") == threading.get_ident()
    assert get(dsk, "a", lane="Inline") == threading.get_ident()
    with dask.config.set({"headrace.lane": "INLINE"}):
        assert get(dsk, "a") == threading.get_ident()


def test_wrong_setting_says_so() -> None:
    with dask.config.set({"headrace.lane": "sideways"}), pytest.raises(ConfigError, match="sideways"):
        get(DIAMOND, "out")
    with dask.config.set({"headrace.speed": "high"}), pytest.raises(ConfigError, match="speed"):
        get(DIAMOND, "out")
    with pytest.raises(ConfigError, match="sideways"):
        get(DIAMOND, "out", lane="sideways")


def test_import_takes_at_most_60_ms_over_dask(tmp_path: Path) -> None:
    """Where dask's own takes 100 ms, and in proportion on slower machines; both from compiled files, as installed."""
    code = (
        "from time import thread_time as now; start = now(); import dask; middle = now(); import headrace_dask;"
        "print((now() - middle) / max(0.1, middle - start));"
        "import sys; print(any(name in sys.modules for name in ('numpy', 'pandas', 'pyarrow', 'distributed')))"
    )
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    python(code, **compiled)  # compiles
    runs = [python(code, **compiled).split() for _ in range(3)]
    assert min(float(share) for share, _ in runs) <= 0.6
    assert {heavy for _, heavy in runs} == {"False"}


# --- results ----------------------------------------------------------------------------------------------------------


def test_plain_graph(lane: str) -> None:
    assert get(DIAMOND, "out") == 13
    assert get(DIAMOND, ["out"]) == (13,)
    assert get(DIAMOND, ["out", ["l", ["r"]], [], "x"]) == (13, (2, (11,)), (), 1)
    assert get(DIAMOND, []) == ()


def test_delayed(lane: str) -> None:
    total = delayed(sum_up)([delayed(inc)(i) for i in range(50)])
    assert total.compute() == sum(range(1, 51))
    assert dask.compute(total, {"n": delayed(inc)(1)}, [3]) == (1275, {"n": 2}, [3])
    assert delayed(collect)(delayed(inc)(1), key=[delayed(inc)(2)]).compute() == ((2,), {"key": [3]})


def test_function_of_the_program_itself(lane: str) -> None:
    factor = 3
    assert delayed(lambda x: x * factor)(2).compute() == 6


def test_many_small_tasks(lane: str) -> None:
    dsk: dict[Any, Any] = {("inc", i): (inc, i) for i in range(2000)}
    assert get(dsk, list(dsk)) == tuple(range(1, 2001))


def test_chain(lane: str) -> None:
    dsk: dict[Any, Any] = {("c", 0): (inc, 0)}
    dsk.update({("c", i): Task(("c", i), inc, TaskRef(("c", i - 1))) for i in range(1, 2000)})
    assert get(dsk, ("c", 1999)) == 2000


def test_bag(lane: str) -> None:
    db = pytest.importorskip("dask.bag")
    words = db.from_sequence(["a b", "b c", "c b"] * 20, npartitions=6).map(str.split).flatten()
    assert dict(words.frequencies().compute()) == {"a": 20, "b": 60, "c": 40}
    assert db.range(100, npartitions=4).map(inc).fold(add).compute() == 5050


def part_of(word: str) -> int:
    return hash(word) % 1000


@pytest.mark.parametrize("fn", [part_of, functools.partial(map, part_of)])
def test_hashes_in_a_bag_are_those_of_this_process(lane: str, fn: Any) -> None:
    import dask.bag as db

    words = [f"w{number}" for number in range(100)]
    bag = db.from_sequence(words, npartitions=2)
    found = bag.map(fn) if fn is part_of else bag.map_partitions(fn)
    assert found.compute() == [part_of(word) for word in words]


def test_array(lane: str) -> None:
    np = pytest.importorskip("numpy")
    da = pytest.importorskip("dask.array")
    values = np.arange(10_000.0).reshape(100, 100)
    x = da.from_array(values, chunks=(30, 40))
    np.testing.assert_array_equal((x.T + 1).compute(), values.T + 1)
    np.testing.assert_allclose((x @ x.T).sum(axis=0).compute(), (values @ values.T).sum(axis=0))
    np.testing.assert_allclose(x.rechunk((50, 10))[::3, [1, 5, 7]].std().compute(), values[::3, [1, 5, 7]].std())


def test_result_of_array_may_be_written_to(lane: str) -> None:
    da = pytest.importorskip("dask.array")
    result = da.ones((200, 200), chunks=100).compute()
    result += 1
    assert result.sum() == 80_000


def test_sparse(lane: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    parts = [delayed(sparse.random)(50, 50, density=0.1, random_state=i) for i in range(4)]
    stacked = delayed(sparse.vstack)(parts).compute()
    expected = sparse.vstack([sparse.random(50, 50, density=0.1, random_state=i) for i in range(4)])
    assert (stacked != expected).nnz == 0


@pytest.mark.parametrize("shuffle", ["tasks", "disk"])
def test_dataframe(lane: str, shuffle: str, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"k": [f"key {i % 7}" for i in range(500)], "v": range(500)})
    ddf = dd.from_pandas(frame, npartitions=5)
    pd.testing.assert_series_equal(
        ddf.groupby("k").v.mean().compute(), frame.groupby("k").v.mean(), check_index_type=False, check_names=False
    )
    with dask.config.set({"dataframe.shuffle.method": shuffle, "temporary_directory": str(tmp_path)}):
        joined = ddf.merge(ddf.groupby("k").v.max().reset_index(), on="k", suffixes=("", "_max"))
        shuffled = ddf.shuffle("v").compute()
    assert joined.v_max.sum().compute() == frame.groupby("k").v.transform("max").sum()
    assert sorted(shuffled.v) == list(range(500))


def test_xarray(lane: str) -> None:
    np = pytest.importorskip("numpy")
    xr = pytest.importorskip("xarray")
    data = xr.DataArray(np.arange(3650.0).reshape(365, 10), dims=("day", "x"), coords={"day": np.arange(365)})
    chunked = data.chunk(day=100)
    xr.testing.assert_allclose(chunked.groupby(chunked.day % 7).mean().compute(), data.groupby(data.day % 7).mean())
    xr.testing.assert_allclose(chunked.rolling(day=3).mean().compute(), data.rolling(day=3).mean())


def test_expressions_and_high_level_graphs() -> None:
    db = pytest.importorskip("dask.bag")
    bag = db.range(10, npartitions=2)
    assert [list(part) for part in get(bag.dask, bag.__dask_keys__())] == [list(range(5)), list(range(5, 10))]
    dd = pytest.importorskip("dask.dataframe")
    frame = dd.from_dict({"a": list(range(10))}, npartitions=2)
    frame = frame.optimize()
    first, second = get(frame.expr, frame.__dask_keys__())
    assert list(first.a) + list(second.a) == list(range(10))


def test_program_in_a_notebook_cell_needs_no_guard() -> None:
    code = """
import dask, headrace_dask
class Box:
    def __init__(self, value): self.value = value
@dask.delayed
def double(box): return Box(2 * box.value)
print(double(double(Box(4))).compute(scheduler="headrace", lane="processes").value)
"""
    assert python(code) == "16"


# --- errors -----------------------------------------------------------------------------------------------------------


def test_exception_arrives_as_itself(lane: str) -> None:
    with pytest.raises(TaskError, match="on purpose"):
        get({"a": (fail,), "b": (inc, "a")}, "b")
    assert get(DIAMOND, "out") == 13


def test_wrong_graphs(lane: str) -> None:
    with pytest.raises(CycleError):
        get({"a": (inc, "b"), "b": (inc, "a")}, "a")
    with pytest.raises(MissingKeyError):
        get(DIAMOND, "nope")
    with pytest.raises(TypeError):
        get(DIAMOND, {"out"})
    with pytest.raises(ValueError, match="Missing dependency"):
        get({"a": Task("a", inc, TaskRef("nope"))}, "a")


# --- keywords ---------------------------------------------------------------------------------------------------------


def test_unknown_keywords_are_accepted() -> None:
    assert get(DIAMOND, "out", chunksize=3, raise_exception=None, anything="else") == 13
    assert delayed(inc)(1).compute(scheduler="headrace", resources={"gpu": 1}, retries=2) == 2


@pytest.mark.parametrize("given", ["keyword", "configuration"])
def test_num_workers_limits_how_many_run_at_once(given: str) -> None:
    lock, running, most = threading.Lock(), [0], [0]

    def work(x: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.002)  # long enough for another one to begin beside it, if it may
        with lock:
            running[0] -= 1
        return x

    dsk: dict[Any, Any] = {i: (work, i + 100) for i in range(20)}
    keywords = {"num_workers": 1} if given == "keyword" else {}
    with dask.config.set({} if keywords else {"num_workers": 1}):
        assert get(dsk, list(dsk), lane="threads", **keywords) == tuple(range(100, 120))
    assert most == [1]


@pytest.mark.parametrize("given", [-1, "two", 2.5])
def test_an_impossible_number_of_workers_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="num_workers"):
        get(DIAMOND, "out", num_workers=given)


def test_any_whole_number_of_workers_will_do() -> None:
    np = pytest.importorskip("numpy")
    for number in (np.int64(2), np.uint8(1), True):
        assert get(DIAMOND, "out", num_workers=number) == 13


def test_more_workers_than_cores(tmp_path: Path) -> None:
    names = [str(i) for i in range(8)]
    dsk: dict[Any, Any] = {f"t{i}": (meet, str(tmp_path), name, names[i - 1]) for i, name in enumerate(names)}
    assert len(get(dsk, list(dsk), lane="threads", num_workers=8)) == 8


@pytest.mark.parametrize("how", ["keyword", "configuration"])
@pytest.mark.parametrize("kind", [concurrent.futures.ThreadPoolExecutor, multiprocessing.pool.ThreadPool])
def test_pool(kind: Callable[[int], Any], how: str) -> None:
    with kind(1) as pool:
        inside = get({"a": (threading.get_ident,)}, "a", pool=pool)
        assert inside != threading.get_ident()
        keywords = {"pool": pool} if how == "keyword" else {}
        with dask.config.set({} if keywords else {"pool": pool}):
            assert get({"a": (threading.get_ident,)}, "a", **keywords) == inside
            assert get(DIAMOND, ["out", ["x"]], chunksize=2, **keywords) == (13, (1,))


@pytest.mark.parametrize("how", ["keyword", "configuration"])
@pytest.mark.parametrize("scheduler", ["headrace", "threads"])
def test_pool_that_is_a_runtime(scheduler: str, how: str) -> None:
    with Runtime(lane="threads", num_workers=1) as pool:
        inside = pool.submit(threading.get_ident).result()
        keywords = {"pool": pool} if how == "keyword" else {}
        with dask.config.set({} if keywords else {"pool": pool}):
            assert delayed(threading.get_ident)().compute(scheduler=scheduler, **keywords) == inside
            kept = delayed(threading.get_ident)().persist(scheduler=scheduler, **keywords)
            assert kept.compute(scheduler="sync") == inside


def test_pool_that_is_no_runtime_and_persist() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        inside = pool.submit(threading.get_ident).result()
        assert delayed(threading.get_ident)().persist(scheduler="headrace", pool=pool).compute() == inside


def test_pool_of_processes() -> None:
    code = """
import dask, headrace_dask, os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Pool
if __name__ == "__main__":
    for kind in (ProcessPoolExecutor, Pool):
        with kind(1) as pool:
            print(headrace_dask.get({"a": (lambda: os.getpid(),)}, "a", pool=pool) != os.getpid())
"""
    assert python(code) == "True\nTrue"


def test_cache_gives_and_takes(lane: str) -> None:
    cache = {"l": 100}
    assert get(DIAMOND, ["out"], cache=cache) == (111,)
    assert cache == {"l": 100, "out": 111}
    with dask.config.set(cache=cache):
        assert get(DIAMOND, "l") == 100


def test_cache_has_the_data_while_it_is_computed() -> None:
    cache: dict[Any, Any] = {}
    seen = get({"data": 1, "seen": (lambda _: dict(cache), "data")}, "seen", lane="inline", cache=cache)
    assert seen == {"data": 1}
    assert get({"data": 1}, "data", cache=cache) == 1
    assert cache == {"data": 1, "seen": {"data": 1}}


def test_cache_keeps_no_arguments() -> None:
    np = pytest.importorskip("numpy")
    ours: dict[Any, Any] = {}
    theirs: dict[Any, Any] = {}
    for _ in range(2):
        dsk = {"large": np.ones(100_000), "sum": (np.sum, np.ones(100_000)), "both": (add, "sum", (np.sum, "large"))}
        assert get(dsk, "both", cache=ours) == dask.threaded.get(dsk, "both", cache=theirs) == 200_000
        assert ours == theirs
    with dask.config.set(cache=ours):
        kept = delayed(np.ones)(100_000).persist(scheduler="headrace")
        assert kept.sum().compute(scheduler="headrace") == 100_000
        values = [value for key, value in ours.items() if key != "both"]
        assert sorted(map(np.size, values)) == [1, 100_000]


def test_rerun_exceptions_locally(lane: str) -> None:
    before = os.getpid(), threading.get_ident()

    def fails_elsewhere(x: int) -> Any:
        raise ValueError((os.getpid(), threading.get_ident()))

    dsk = {"a": (inc, 1), "b": (fails_elsewhere, "a")}
    with pytest.raises(ValueError, match=r"\d") as error:
        get(dsk, "b", rerun_exceptions_locally=True)
    assert error.value.args[0] == before
    with dask.config.set(rerun_exceptions_locally=True), pytest.raises(ValueError, match=r"\d") as error:
        get(dsk, "b")
    assert error.value.args[0] == before


def test_settings_that_tasks_make_for_themselves(lane: str) -> None:
    np = pytest.importorskip("numpy", minversion="2", reason="numpy keeps them in a context variable since 2.0")
    before = np.geterr()
    for _ in range(2):
        assert get({"a": (np.seterr, "ignore")}, "a") == before
        assert np.geterr() == before


# --- nesting and threads ----------------------------------------------------------------------------------------------


def test_compute_inside_a_task(lane: str) -> None:
    def nested(depth: int) -> int:
        import dask

        if not depth:
            return 1
        parts = [dask.delayed(nested)(depth - 1) for _ in range(3)]
        return sum(dask.compute(*parts, scheduler="headrace"))

    def starts_nested(depth: int) -> int:
        import headrace_dask  # noqa: F401 - registers the name in a worker

        return nested(depth)

    parts = [delayed(starts_nested)(2) for _ in range(6)]
    assert dask.compute(*parts) == (9,) * 6


def test_compute_inside_a_task_needs_no_import_there() -> None:
    code = """
import dask, headrace_dask, threading
def inner():
    return sorted({threading.get_ident() == here for here in dask.compute(*[dask.delayed(threading.get_ident)()] * 3)})
def named():
    return dask.delayed(abs)(-1).compute(scheduler="headrace")
with dask.config.set({"scheduler": "headrace", "headrace.lane": "processes"}):
    print(dask.compute(dask.delayed(inner)(), dask.delayed(named)()))
"""
    assert python(code) == "([True], 1)"


def test_worker_without_dask_does_not_import_it() -> None:
    code = """
import headrace_dask
from headrace.testing import get_modules
modules = headrace_dask.get({"a": (get_modules,)}, "a", lane="processes")
print([name for name in ("dask", "headrace_dask", "numpy", "cloudpickle") if name in modules])
"""
    assert python(code) == "[]"


def test_several_threads_compute_at_once(lane: str) -> None:
    def compute(start: int) -> Any:
        dsk: dict[Any, Any] = {("t", i): (inc, start + i) for i in range(200)}
        dsk["out"] = (sum_up, list(dsk))
        return [get(dsk, "out", lane=lane) for _ in range(5)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(compute, range(0, 8000, 1000)))
    assert results == [[sum(range(start + 1, start + 201))] * 5 for start in range(0, 8000, 1000)]


def test_processes_are_other_processes(lane: str) -> None:
    pids = set(get({i: (get_pid, f"{i}") for i in range(20)}, list(range(20))))
    if lane == "processes":
        assert os.getpid() not in pids
    else:
        assert pids == {os.getpid()}


def test_large_argument_of_many_tasks(lane: str) -> None:
    np = pytest.importorskip("numpy")
    large = np.arange(500_000.0)
    dsk: dict[Any, Any] = {("s", i): (np.sum, large) for i in range(16)}
    assert get(dsk, list(dsk)) == (large.sum(),) * 16


def test_task_may_change_its_own_literals_without_harm(lane: str) -> None:
    def eat(items: list[int], options: dict[str, int]) -> int:
        return items.pop() + options.pop("a")

    dsk = {"a": (eat, [1, 2], {"a": 10})}
    assert [get(dsk, "a"), get(dsk, "a")] == [12, 12]


def test_slow_and_quick_tasks_together(lane: str) -> None:
    dsk: dict[Any, Any] = {("quick", i): (identity, -i) for i in range(100)}
    dsk |= {("slow", i): (slow, -i, 0.002) for i in range(10)}
    assert get(dsk, list(dsk)) == (*range(0, -100, -1), *range(0, -10, -1))


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


def fail_with(code: int) -> None:
    raise FrozenError(code)


@pytest.mark.parametrize("lane", LANES)
def test_an_exception_that_refuses_attributes_arrives_as_itself(lane: str) -> None:
    with pytest.raises(FrozenError) as caught:
        get({"x": (fail_with, 1)}, "x", lane=lane)
    assert caught.value == FrozenError(1)
