"""Graphs of a user: a module in a folder that is the current one, as ``headrace bench --graph`` finds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.font_manager
import pytest

SOURCE = """
import multiprocessing, os, signal, subprocess, sys, time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

def inc(x): return x + 1
def fail(): raise ValueError("not today")
def sleep(): Path("running").touch(); subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).wait()
def die(): os.kill(os.getpid(), signal.SIGKILL)
def leave_and_die():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    die()

def is_stock(number):
    found = [name for name in sys.modules if name.partition(".")[0] in ("headrace", "headrace_dask")]
    if found: raise AssertionError(f"here is {sorted(found)}")
    return number

def chain(): return {"a": 1, "b": (inc, "a"), "c": (inc, "b")}, ["c"]
def numbers(): return {"a": (complex, 1.5, 2), "b": (float, "nan")}, ["a", "b"]
def failing(): return {"a": (fail,)}, ["a"]
def slow(): return {"a": (sleep,)}, ["a"]
def dying(): return {"a": (die,)}, ["a"]
def orphaning(): return {"a": (leave_and_die,)}, ["a"]
def differing(): return {"a": (os.getpid,)}, ["a"]
def rounding(): return {"a": (float, repr(1 + os.getpid() * 1e-15))}, ["a"]
def exiting(): return {"a": (sys.exit, 3)}, ["a"]
def unbuildable(): raise LookupError("no data here")

def beside_the_suite():
    from headrace_bench.tasks import inc
    return {"a": (inc, 1), "b": (is_stock, "a")}, ["b"]

def array():
    import dask.array as da
    return da.arange(10, chunks=5).sum()

def several():
    import dask
    return [dask.delayed(inc)(1), dask.delayed(inc)(2)]

def pair_of_datasets():
    import dask.array, xarray
    return tuple(xarray.Dataset({name: ("x", dask.array.arange(8, chunks=4))}) for name in "ab")

def pair_of_sums():
    return tuple(dataset.sum() for dataset in pair_of_datasets())

def get_nothing(dsk, keys, **options): return None
def get_beside_a_pool(dsk, keys, **options):
    import dask
    global pool
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    pool.submit(os.getpid).result()
    return dask.get(dsk, keys)
def raise_in_get(dsk, keys, **options): raise RuntimeError("this scheduler is broken")
"""


@pytest.fixture
def fonts() -> Iterator[None]:
    """Closes the files of fonts, which matplotlib keeps open for the next picture."""
    yield
    matplotlib.font_manager._get_font.cache_clear()


@pytest.fixture
def graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module's name; the current folder is a new one that holds it."""
    (tmp_path / "users_graphs.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return "users_graphs"
