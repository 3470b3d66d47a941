"""Locks exclude in every lane, and files that only one may write at a time come out right."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from dask import delayed
from dask._task_spec import Task, TaskRef
from dask.utils import SerializableLock, get_scheduler_lock

from headrace.errors import MustStayHere, WorkerDied
from headrace.store.pickling import pack, unpack
from headrace.testing import collect, inc, wait_until
from headrace_dask import get
from headrace_dask.translate import translate

pytestmark = pytest.mark.shares_runtime


@pytest.fixture
def gc_is_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def add_one(path: Path) -> int:
    """Reads a number from a file and writes it back, one higher; wrong if another does so at the same time."""
    number = int(path.read_text())
    time.sleep(0.001)
    path.write_text(str(number + 1))
    return os.getpid()


# --- where tasks with locks run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SerializableLock, threading.Lock, threading.RLock])
def test_lock_in_an_argument_pins_its_task(make: Callable[[], Any]) -> None:
    lock = make()
    dsk: dict[Any, Any] = {
        "free": (inc, 1),
        "legacy": (collect, "free", lock),
        "task": Task("task", collect, TaskRef("free"), lock),
        "keyword": Task("keyword", collect, lock=lock),
        "fused": Task.fuse(Task("f", inc, 1), Task("g", collect, TaskRef("f"), lock=lock), key="fused"),
    }
    graph = translate(dsk, ["legacy", "task", "keyword", "fused"])
    assert {graph.keys[index] for index in graph.pinned} == {"legacy", "task", "keyword", "fused"}


@pytest.mark.parametrize("make", [SerializableLock, threading.Lock, threading.RLock])
def test_lock_inside_an_object_is_not_pickled(make: Callable[[], Any]) -> None:
    lock = make()

    def closure() -> None:
        with lock:
            pass

    for holder in ({"inner": [lock]}, closure):
        with pytest.raises(MustStayHere, match="excludes only within its process"):
            pack(holder)


@pytest.mark.parametrize("make", [SerializableLock, threading.Lock])
@pytest.mark.parametrize("where", ["argument", "keyword", "closure", "inside an object"])
def test_lock_excludes(lane: str, make: Callable[[], Any], where: str, tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("0")
    lock, count = make(), 40

    def with_lock(lock: Any, number: int) -> int:
        with lock["inner"] if isinstance(lock, dict) else lock:
            return add_one(path)

    def with_closure(number: int) -> int:
        return with_lock(lock, number)

    make_task = {
        "argument": lambda i: Task(i, with_lock, lock, i),
        "keyword": lambda i: Task(i, with_lock, number=i, lock=lock),
        "closure": lambda i: Task(i, with_closure, i),
        "inside an object": lambda i: Task(i, with_lock, {"inner": lock}, i),
    }[where]
    pids = set(get({i: make_task(i) for i in range(count)}, list(range(count)), num_workers=4))
    assert path.read_text() == str(count)
    assert pids == {os.getpid()}


def test_tasks_without_locks_still_travel() -> None:
    lock = SerializableLock()

    def held(lock: Any, pid: int) -> tuple[int, int]:
        with lock:
            return os.getpid(), pid

    dsk: dict[Any, Any] = {"there": (os.getpid,), "here": (held, lock, "there")}
    here, there = get(dsk, "here", lane="processes")
    assert here == os.getpid() != there


def test_lock_of_the_scheduler_is_one_that_keeps_tasks_here() -> None:
    da = pytest.importorskip("dask.array")
    with dask.config.set(scheduler="headrace"):
        lock = get_scheduler_lock(da.Array)
    assert type(lock) is SerializableLock
    with pytest.raises(MustStayHere):
        pack(lock)


# --- xarray's locks ---------------------------------------------------------------------------------------------------


def test_xarray_file_locks_stay_and_library_locks_travel() -> None:
    locks = pytest.importorskip("xarray.backends.locks")
    with dask.config.set(scheduler="headrace"):
        find_scheduler = getattr(locks, "get_dask_scheduler", None) or locks._get_scheduler  # its older name
        assert find_scheduler() == "threaded"
        assert delayed(inc)(1).compute() == 2
        writing = locks.combine_locks([locks.HDF5_LOCK, locks.get_write_lock("some file")])
    for lock in (writing, locks.SerializableLock("of a user")):
        with pytest.raises(MustStayHere):
            pack({"lock": lock})
    packed = pack([locks.HDF5_LOCK, locks.NETCDFC_LOCK])
    hdf5, netcdf = unpack(*packed)
    assert hdf5 is locks.HDF5_LOCK
    assert netcdf is locks.NETCDFC_LOCK


# --- files ------------------------------------------------------------------------------------------------------------


def test_store_into_hdf5(lane: str, tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    da = pytest.importorskip("dask.array")
    h5py = pytest.importorskip("h5py")
    values = np.arange(360_000.0).reshape(600, 600)
    x = da.from_array(values, chunks=60)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        target = file.create_dataset("x", shape=x.shape, dtype="f8", chunks=(100, 100), compression="gzip")
        da.store([x + 1, x.T], [target, file.create_dataset("t", shape=x.shape, dtype="f8")])
    da.to_hdf5(tmp_path / "b.h5", {"/x": x * 2, "/y": x - 1})
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        np.testing.assert_array_equal(a["x"][:], values + 1)
        np.testing.assert_array_equal(a["t"][:], values.T)
        np.testing.assert_array_equal(b["x"][:], values * 2)
        np.testing.assert_array_equal(b["y"][:], values - 1)


def test_read_from_hdf5(lane: str, tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    da = pytest.importorskip("dask.array")
    h5py = pytest.importorskip("h5py")
    values = np.arange(40_000.0).reshape(200, 200)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = values
    with h5py.File(tmp_path / "a.h5") as file:
        x = da.from_array(file["x"], chunks=50, lock=True)
        np.testing.assert_allclose((x @ x.T).sum().compute(), (values @ values.T).sum())


@pytest.mark.parametrize("lock", [True, False])
def test_store_into_memory(lane: str, lock: bool) -> None:
    """What a task writes into an object of this process must be seen in this process."""
    np = pytest.importorskip("numpy")
    da = pytest.importorskip("dask.array")
    target = np.zeros((300, 300))
    (da.ones((300, 300), chunks=50) * 3).store(target, lock=lock)
    assert target.sum() == 270_000
    stored = da.store([da.ones(100, chunks=10)], [np.zeros(100)], lock=lock, return_stored=True)
    assert np.sum(dask.compute(stored)) == 100


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "scipy"])
@pytest.mark.parametrize("how", ["at once", "delayed"])
def test_netcdf(lane: str, engine: str, how: str, tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    xr = pytest.importorskip("xarray")
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    values = np.arange(240_000.0).reshape(24, 100, 100)
    dataset = xr.Dataset({"a": (("t", "y", "x"), values), "b": (("t", "y"), values[:, :, 0])})
    chunked = dataset.chunk(t=2, y=50)
    changed = chunked.assign(c=chunked.a * 2 + chunked.b, d=chunked.a.mean("t"))
    path = tmp_path / "out.nc"
    if how == "at once":
        changed.to_netcdf(path, engine=engine)
    else:
        changed.to_netcdf(path, engine=engine, compute=False).compute()
    expected = dataset.assign(c=dataset.a * 2 + dataset.b, d=dataset.a.mean("t"))
    with xr.open_dataset(path, engine=engine) as written:
        xr.testing.assert_allclose(written.load(), expected)
    with xr.open_dataset(path, engine=engine, chunks={"t": 3}) as lazy:
        np.testing.assert_allclose(lazy.c.sum("x").compute(), expected.c.sum("x"))


def test_several_netcdf_files_at_once(lane: str, tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    xr = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    values = np.arange(60_000.0).reshape(6, 100, 100)
    dataset = xr.Dataset({"a": (("t", "y", "x"), values)}, coords={"t": np.arange(6)}).chunk(t=1, y=50)
    paths = [tmp_path / f"{i}.nc" for i in range(3)]
    xr.save_mfdataset([dataset.isel(t=slice(2 * i, 2 * i + 2)) * 2 for i in range(3)], paths)
    with xr.open_mfdataset(paths, parallel=True, combine="nested", concat_dim="t") as back:
        np.testing.assert_array_equal(back.a.values, values * 2)
        np.testing.assert_allclose(back.a.mean("t").compute(), (values * 2).mean(0))


def reads_and_writes_lock_in_the_same_order() -> bool:
    """Before 2026.9, xarray's combined locks are sets, whose order comes from addresses, and from what else is in
    them: in some processes reading takes the locks of HDF5 and netCDF in one order, and writing in the other.
    """
    locks = importlib.import_module("xarray.backends.locks")
    reading = importlib.import_module("xarray.backends.netCDF4_").NETCDF4_PYTHON_LOCK
    writing = locks.combine_locks([reading, locks.get_write_lock("out.nc")])
    return list(reading.locks) == [lock for lock in writing.locks if lock in reading.locks]


def test_append_to_a_netcdf_file_that_others_have_open(lane: str, tmp_path: Path) -> None:
    """Reading and writing files of the same library at the same time."""
    np = pytest.importorskip("numpy")
    xr = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    if not reads_and_writes_lock_in_the_same_order():
        pytest.skip("this xarray deadlocks with itself in some processes, on any scheduler with threads")
    values = np.arange(10_000.0).reshape(100, 100)
    xr.Dataset({"a": (("y", "x"), values)}).to_netcdf(tmp_path / "in.nc")
    with xr.open_dataset(tmp_path / "in.nc", chunks={"y": 10}) as source:
        (source + 1).to_netcdf(tmp_path / "out.nc")
        source.rename(a="b").to_netcdf(tmp_path / "out.nc", mode="a")
    with xr.open_dataset(tmp_path / "out.nc") as written:
        np.testing.assert_array_equal(written.a, values + 1)
        np.testing.assert_array_equal(written.b, values)


@pytest.mark.parametrize("how", ["argument", "result"])
def test_store_in_memory_of_partd_stays_with_its_data(lane: str, how: str) -> None:
    """It is made here; tasks that would rather run elsewhere append to it; nothing may be lost."""
    partd = pytest.importorskip("partd")
    store = partd.Python(partd.Dict())

    def append(store: Any, number: int) -> int:
        store.append({"k": [number]})
        return os.getpid()

    given = store if how == "argument" else TaskRef("store")
    dsk: dict[Any, Any] = {i: Task(i, append, given, i) for i in range(20)}
    dsk["store"] = Task("store", lambda: store)
    pids = get(dsk, list(range(20)))
    assert sorted(store.get("k")) == list(range(20))
    assert set(pids) == {os.getpid()}


def test_memory_file_system_stays_with_its_files(lane: str) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")

    def write(files: Any, number: int) -> int:
        with files.open(f"/headrace/{number}", "wb") as file:
            file.write(b"x")
        return os.getpid()

    try:
        pids = get({i: Task(i, write, files, i) for i in range(20)}, list(range(20)))
        assert len(files.ls("/headrace", detail=False)) == 20
    finally:
        files.rm("/headrace", recursive=True)
    assert set(pids) == {os.getpid()}


@pytest.mark.parametrize("protocol", ["simplecache", "filecache"])
def test_cache_of_a_memory_file_system_stays_with_its_files(protocol: str, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem(protocol, target_protocol="memory", cache_storage=str(tmp_path))
    with pytest.raises(MustStayHere, match="MemoryFileSystem keeps its data in this process"):
        pack(files)
    with pytest.raises(MustStayHere, match="MemoryFileSystem"):
        pack(fsspec.filesystem("simplecache", fs=files, cache_storage=str(tmp_path)))


def test_cache_of_other_files_travels(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("simplecache", target_protocol="file", cache_storage=str(tmp_path))
    packed = pack(files)
    assert unpack(packed.data, packed.buffers) == files


def test_a_task_that_stays_is_not_kept_by_the_error_that_said_so(gc_is_off: None) -> None:
    """Nor by the thread that ran it. dask.dataframe sees the difference: it reuses expressions that are still there."""

    class Held:
        def __init__(self) -> None:
            self.lock = threading.Lock()

    held = Held()
    token = weakref.ref(held)
    dsk = {"stays": Task("stays", collect, {"deep": held}), "goes": Task("goes", len, TaskRef("stays"))}
    assert get(dsk, "goes", lane="processes") == 2
    del dsk, held
    wait_until(lambda: token() is None)


IMPORTED_BY_A_TASK = """
import sys, threading
from dask._task_spec import Task, TaskRef
from headrace_dask import get

def open_store(lock):
    import partd
    return partd.Python(partd.Dict())

def append(store, number):
    store.append({"k": [number]})

def read(store, *appended):
    return sorted(store.get("k"))

if __name__ == "__main__":
    dsk = {i: Task(i, append, TaskRef("store"), i) for i in range(20)}
    dsk["store"] = Task("store", open_store, threading.Lock())
    dsk["read"] = Task("read", read, TaskRef("store"), *map(TaskRef, range(20)))
    assert "partd" not in sys.modules
    print(get(dsk, "read", lane="processes") == list(range(20)))
"""


def test_what_a_task_is_the_first_to_import_stays_with_its_data() -> None:
    """As when dask.dataframe shuffles through the disk for the first time."""
    pytest.importorskip("partd")
    done = subprocess.run([sys.executable, "-c", IMPORTED_BY_A_TASK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n"


# --- locks with a name ------------------------------------------------------------------------------------------------

MODULE = """
import os, time
from dask.utils import SerializableLock
from pathlib import Path

lock = SerializableLock({token!r})

def add_one(path, number):
    with lock:
        count = int(Path(path).read_text())
        time.sleep(0.001)
        Path(path).write_text(str(count + 1))
    return os.getpid()

def try_lock(number, timeout):
    taken = lock.acquire(timeout=timeout) if timeout else lock.acquire(blocking=False)
    if taken:
        lock.release()
    return taken
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of a user's, with a lock at its top."""
    name = f"counting_{os.urandom(4).hex()}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(token=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "number").write_text("0")
    return importlib.import_module(name)


def test_named_lock_of_a_module_excludes_across_processes(counting: Any, tmp_path: Path) -> None:
    """Workers and a thread of this process take the same lock at the same time."""
    path, count = tmp_path / "number", 60
    dsk: dict[Any, Any] = {i: Task(i, counting.add_one, str(path), i) for i in range(count)}
    here = threading.Thread(target=lambda: [counting.add_one(path, 0) for _ in range(count)])
    here.start()
    pids = set(get(dsk, list(dsk), lane="processes", num_workers=2))
    here.join()
    assert path.read_text() == str(2 * count)
    assert os.getpid() not in pids


@pytest.mark.parametrize("timeout", [0, 0.02])
def test_named_lock_is_tried_and_given_up(counting: Any, timeout: float) -> None:
    dsk: dict[Any, Any] = {"try": Task("try", counting.try_lock, 1, timeout)}
    with counting.lock:
        assert not get(dsk, "try", lane="processes")
        assert not counting.try_lock(1, timeout)
    assert get(dsk, "try", lane="processes")
    assert counting.try_lock(1, timeout)


def test_named_lock_behaves_as_a_lock(counting: Any) -> None:
    lock = counting.lock
    assert lock.acquire()
    assert lock.locked()
    assert not lock.acquire(timeout=0.01)
    lock.release()
    assert not lock.locked()
    with pytest.raises(RuntimeError):
        lock.release()
    with lock, SerializableLock(lock.token + " another"), SerializableLock():
        assert not SerializableLock(lock.token).acquire(blocking=False)
    assert SerializableLock(lock.token).acquire(False)
    lock.release()


def test_named_lock_of_a_killed_worker_is_free(counting: Any) -> None:
    """The kernel gives back what a dead process had locked."""

    def die_with_it() -> None:
        counting.lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerDied):
        get({"a": (die_with_it,)}, "a", lane="processes")
    assert counting.lock.acquire(timeout=10)
    counting.lock.release()
