"""What a worker has around it: directory, search path, environment, modules, functions of earlier jobs."""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import testing as t
from headrace.store import hashes

MB = 1 << 20


def known_functions(host: Any, lane: Any) -> int:
    """How many functions worker 1 knows, by what it says itself."""

    def look() -> int:
        (worker,) = [o for o in gc.get_objects() if type(o).__name__ == "Worker"]
        return len(worker._functions)

    host.add(10**6, look, wanted=True)
    host.execute(lane, 1, 10**6)
    return int(host.values[10**6])


def test_workers_follow_the_owner_s_directory_and_path(
    hosted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hosted() as (host, lane):
        host.add(0, os.getcwd)
        host.execute(lane, 1, 0)
        assert host.values[0] == os.getcwd()
        (tmp_path / "module_of_mine.py").write_text("def answer(): return 42\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        import module_of_mine

        host.add(1, os.getcwd)
        host.add(2, module_of_mine.answer, wanted=True)
        host.execute(lane, 1, 1, 2)
        assert host.values[1] == str(tmp_path)
        assert host.values[2] == 42


def test_workers_follow_the_owner_s_environment(hosted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE_BEFORE", "1")
    numbers = itertools.count()
    with hosted() as (host, lane):

        def seen(fn: Any, *args: Any) -> Any:
            host.execute(lane, 1, task := host.add(next(numbers), fn, *args, wanted=True))
            return host.values[task]

        assert seen(os.getenv, "HERE_BEFORE") == "1"
        assert seen(os.getenv, "OMP_NUM_THREADS") == "1"  # a worker's own
        monkeypatch.setenv("ADDED", "b\udcc3")
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        monkeypatch.delenv("HERE_BEFORE")
        assert [seen(os.getenv, name) for name in ("ADDED", "HERE_BEFORE")] == ["b\udcc3", None]
        assert seen(eval, "__import__('time').strftime('%Z')") == "JST"
        assert seen(os.getenv, "OMP_NUM_THREADS") == "1"
        seen(exec, "import os; os.environ['ADDED'] = 'by a task'")
        assert seen(os.getenv, "ADDED") == "by a task"
        monkeypatch.setenv("ADDED", "again")
        assert seen(os.getenv, "ADDED") == "again"


def test_modules_that_are_loaded_again_are_so_in_workers(
    hosted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    numbers = itertools.count()
    with hosted() as (host, lane):

        def answer(module: Any) -> Any:
            host.execute(lane, 1, task := host.add(next(numbers), module.answer, wanted=True))
            return host.values[task]

        (tmp_path / "edited_helper.py").write_text("number = 1")
        (tmp_path / "edited.py").write_text("import edited_helper\ndef answer(): return edited_helper.number")
        edited = importlib.import_module("edited")
        assert answer(edited) == 1
        (tmp_path / "edited_helper.py").write_text("number = 22")
        importlib.reload(edited.edited_helper)
        assert answer(edited) == 22
        (tmp_path / "edited.py").write_text("def answer(): return 333")
        del sys.modules["edited"]
        importlib.invalidate_caches()
        assert answer(importlib.import_module("edited")) == 333
    for name in ("edited", "edited_helper"):
        del sys.modules[name]


def test_modules_are_imported_in_advance_and_wrong_guesses_are_harmless(hosted: Any) -> None:
    with hosted(0) as (host, lane):
        lane.launch([1], ["no_such_module", "colorsys"])
        lane.flush()
        tasks = itertools.count()

        def imported() -> bool:
            host.execute(lane, 1, task := host.add(next(tasks), t.get_modules, wanted=True))
            return "colorsys" in host.values[task]

        t.wait_until(imported)


def test_a_bare_worker_is_small_and_imports_nothing_heavy(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.get_modules, wanted=True)
        host.execute(lane, 1, 0)
        heavy = {
            "numpy",
            "pandas",
            "pyarrow",
            "dask",
            "cloudpickle",
            "psutil",
            "dataclasses",
            "asyncio",
            "headrace.engine",
            "headrace.runtime",
        }
        assert not heavy & set(host.values[0])
        rollup = Path(f"/proc/{lane.status()[0]['pid']}/smaps_rollup").read_text()
        pss_kb = int(rollup.partition("\nPss:")[2].split()[0])
        assert pss_kb < 20_000


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"])
def test_numeric_libraries_get_one_thread_unless_the_user_says_otherwise(
    hosted: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for value, expected in ((None, "1"), ("3", "3")):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        with hosted() as (host, lane):
            host.add(0, t.get_environment, name)
            host.execute(lane, 1, 0)
            assert host.values[0] == expected


def test_strings_hash_alike_in_all_workers(hosted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with hosted(2) as (host, lane):
        for worker in (1, 2):
            host.add(worker, str.__hash__, "headrace")
            host.execute(lane, worker, worker)
        assert host.values[1] == host.values[2]


@pytest.mark.parametrize("seed", ["", "3"])
def test_strings_hash_as_the_program_was_started_not_as_it_sets_later(
    hosted: Any, monkeypatch: pytest.MonkeyPatch, seed: str
) -> None:
    monkeypatch.setattr(hashes, "SEED", seed)
    found = []
    for later in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", later)
        with hosted() as (host, lane):
            host.add(0, str.__hash__, "headrace")
            host.execute(lane, 1, 0)
            found.append(host.values[0])
    script = "print(str.__hash__('headrace'))"
    environment = os.environ | {"PYTHONHASHSEED": seed or "0"}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert found == [int(told.stdout)] * 2


def test_functions_travel_by_value_when_nobody_could_import_them(hosted: Any) -> None:
    offset = 5

    def local(x: int) -> int:
        return x + offset

    with hosted() as (host, lane):
        host.add(0, local, 1)
        host.add(1, lambda x: local(x) * 2, 1)
        host.execute(lane, 1, 0, 1)
        assert (host.values[0], host.values[1]) == (6, 12)


def test_a_function_is_sent_once_but_its_globals_are_those_of_the_job(hosted: Any) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "factor": 2}
    exec("def scale(x): return x * factor", namespace)
    with hosted() as (host, lane):
        sent = []
        lend = lane._publications.lend
        lane._publications.lend = lambda packed, reader: (sent.append(packed), lend(packed, reader))[1]
        bases = {}
        host.call_of = lambda task: (host.calls[task], bases[task])
        for task, factor in ((0, 2), (1, 2), (1000, 2), (2000, 3)):
            bases[task] = task // 1000 * 1000
            namespace["factor"] = factor
            host.add(task, namespace["scale"], 10)
            host.execute(lane, 1, task)
            assert host.values[task] == 10 * factor
        assert len(sent) == 2


def test_many_functions_are_forgotten_again(hosted: Any) -> None:
    with hosted() as (host, lane):
        makers = [eval(f"lambda: {i}") for i in range(5000)]
        for i, fn in enumerate(makers):
            host.add(i, fn)
        for start in range(0, 5000, 100):
            host.execute(lane, 1, *range(start, start + 100))
        assert [host.values[i] for i in range(5000)] == list(range(5000))
        assert len(lane._sender._functions._known) <= 4096
        assert known_functions(host, lane) <= 4096


def test_large_closures_of_earlier_jobs_are_forgotten(hosted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.lanes.processes.functions._MOST_BYTES", 3 * MB)
    with hosted() as (host, lane):
        host.call_of = lambda task: (host.calls[task], task // 10)
        for job in range(20):
            array = np.full(MB // 8, float(job))
            tasks = [host.add(job * 10 + i, lambda x, array=array: x + array.sum(), i) for i in range(3)]
            host.execute(lane, 1, *tasks)
            assert [host.values[i] for i in tasks] == [i + job * MB / 8 for i in range(3)]
        t.wait_until(lambda: lane.store_status()["segments"] <= 12)
        assert lane._publications._arena.stats()["high_water_bytes"] < 20 * MB


def test_the_owner_s_unused_memory_goes_back_to_the_system(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.values[0] = np.ones(MB)
        host.add(1, t.array_sum, None, holes=((0, 0),), wanted=True)
        host.execute(lane, 1, 1)
        assert lane._publications._arena.stats()["resident_bytes"] >= 8 * MB
        lane.release([0])
        lane.flush()
        t.wait_until(lambda: lane.store_status()["segments"] == 0)
        for _ in range(10):
            lane._tend()  # as the clock does, twice a second
        assert lane._publications._arena.stats()["resident_bytes"] == 0
