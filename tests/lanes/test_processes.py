"""The processes lane with real workers: tasks, values and orders. The tests play the decision core."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import testing as t
from headrace.errors import UnpicklableError
from headrace.sched.events import (
    TaskRaised,
    TasksRevoked,
    TaskUnpicklable,
    ValuePublished,
    WorkerDied,
    WorkerRan,
    WorkersIdled,
    WorkerStarted,
)

MB = 1 << 20


def ran(host: Any, *tasks: int) -> None:
    """Waits until all these tasks were reported as run."""
    host.wait(lambda: {s.task for e in host.of(WorkerRan) for s in e.spans} >= set(tasks), f"the end of {tasks}")


def span_of(host: Any, task: int) -> Any:
    return next(s for e in host.of(WorkerRan) for s in e.spans if s.task == task)


def execute(host: Any, lane: Any, worker: int, *tasks: int) -> None:
    lane.run(worker, tasks)
    lane.flush()
    ran(host, *tasks)


def held_at(host: Any, lane: Any, worker: int) -> set[int]:
    """The tasks whose values a worker holds, by what it says itself."""

    def look() -> list[int]:
        import gc

        (holdings,) = [o for o in gc.get_objects() if type(o).__name__ == "Holdings"]
        return list(holdings._values)

    host.add(10**6, look, wanted=True)
    execute(host, lane, worker, 10**6)
    return set(host.values[10**6])


def known_functions(host: Any, lane: Any) -> int:
    """How many functions worker 1 knows, by what it says itself."""

    def look() -> int:
        import gc

        (worker,) = [o for o in gc.get_objects() if type(o).__name__ == "Worker"]
        return len(worker._functions)

    host.add(10**6, look, wanted=True)
    execute(host, lane, 1, 10**6)
    return int(host.values[10**6])


# --- results ----------------------------------------------------------------------------------------------------------


def test_small_results_arrive_with_the_report(hosted: Any) -> None:
    with hosted() as (host, lane):
        tasks = [host.add(i, t.inc, i) for i in range(1000)]
        execute(host, lane, 1, *tasks)
        assert [host.values[i] for i in tasks] == [i + 1 for i in tasks]
        assert sorted(i for e in host.of(WorkerRan) for i in e.arrived) == tasks
        assert len(host.of(WorkerRan)) < 100  # in batches


VALUES = [
    None,
    True,
    3,
    2**200,
    1 << 70000,
    1.5,
    -0.0,
    1j,
    "é\udcff",
    "x" * 5000,
    b"\0x",
    (1, "a"),
    [1, [2]],
    {"k": {1}},
]


def test_values_come_back_with_their_type(hosted: Any) -> None:
    with hosted() as (host, lane):
        for i, value in enumerate(VALUES):
            host.add(2 * i, t.identity, value, wanted=True)
            host.add(2 * i + 1, t.identity, None, holes=((0, 2 * i),), wanted=True)
        execute(host, lane, 1, *range(2 * len(VALUES)))
        for i, value in enumerate(VALUES):
            for task in (2 * i, 2 * i + 1):
                assert host.values[task] == value
                assert type(host.values[task]) is type(value)


def test_subclasses_of_plain_types_stay_themselves(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.identity, np.float64(2.5), wanted=True)
        host.add(1, t.identity, np.int32(7), wanted=True)
        execute(host, lane, 1, 0, 1)
        assert type(host.values[0]) is np.float64
        assert type(host.values[1]) is np.int32


def test_arguments_keywords_and_holes_reach_the_function(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.identity, 10)
        host.add(1, t.identity, 11)
        host.add(2, t.collect, object, "a", "b", holes=((0, 0), (2, (0, 1, 0))), wanted=True, key={"x": [1]})
        execute(host, lane, 1, 0, 1, 2)
        assert host.values[2] == ((10, "a", [10, 11, 10]), {"key": {"x": [1]}})


def test_what_stands_at_a_hole_needs_not_be_picklable(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.identity, 1)
        host.add(1, t.add, sys._getframe(), 5, holes=((0, 0),), wanted=True)
        execute(host, lane, 1, 0, 1)
        assert host.values[1] == 6


def test_large_unwanted_results_stay_with_the_worker(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.make_array, MB)
        host.add(1, t.array_sum, None, holes=((0, 0),), wanted=True)
        execute(host, lane, 1, 0, 1)
        assert host.values == {1: MB / 8}
        assert not host.of(ValuePublished)
        assert span_of(host, 0).size_bytes == MB


def test_large_wanted_results_are_published_straight_away(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.make_array, MB, wanted=True)
        lane.run(1, [0])
        lane.flush()
        host.next(ValuePublished, task=0, worker=1)
        assert host.story()[-2:] == ["WorkerRan", "ValuePublished"]
        assert host.of(WorkerRan)[0].arrived == []
        array = lane.load(0)
        assert array.sum() == MB / 8
        assert lane.load(0) is array
        array[:] = 0  # private to this process
        del array
        gc.collect()
        assert lane.load(0).sum() == MB / 8


@pytest.mark.parametrize("size", [100, 40_000, 3 * MB])
def test_published_values_reach_owner_and_other_workers(hosted: Any, size: int) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.make_bytes, size)
        host.add(1, len, None, holes=((0, 0),), wanted=True)
        execute(host, lane, 1, 0)
        lane.publish(1, 0)
        lane.flush()
        host.next(ValuePublished, task=0, worker=1)
        host.values.pop(0, None)
        execute(host, lane, 2, 1)
        assert host.values[1] == size
        assert lane.load(0) == t.make_bytes(size)
        lane.publish(1, 0)  # once more: answered, not done
        lane.flush()
        host.wait(lambda: len(host.of(ValuePublished)) == 2)


def test_large_values_of_the_owner_are_published_once_for_all_workers(hosted: Any) -> None:
    with hosted(2) as (host, lane):
        host.values[0] = np.arange(MB, dtype=np.uint8)
        for i in range(1, 9):
            host.add(i, t.array_sum, None, holes=((0, 0),), wanted=True)
            lane.run(1 + i % 2, [i])
        lane.flush()
        ran(host, *range(1, 9))
        assert {host.values[i] for i in range(1, 9)} == {float(host.values[0].sum())}
        status = lane.store_status()
        assert (status["values"], status["segments"], status["published_bytes"]) == (1, 1, MB)


def test_large_arguments_of_a_task_travel_through_memory_that_is_used_again(hosted: Any) -> None:
    with hosted() as (host, lane):
        for i in range(20):
            host.add(i, t.array_sum, np.full(MB // 8, float(i)), wanted=True)
            execute(host, lane, 1, i)
            assert host.values[i] == i * MB / 8
        t.wait_until(lambda: lane.store_status()["segments"] == 0, "closing of the arguments")
        assert lane._publications._arena.stats()["high_water_bytes"] <= 4 * MB


def test_a_task_that_writes_into_its_input_changes_its_own_copy(hosted: Any) -> None:
    with hosted(2) as (host, lane):
        host.values[0] = np.ones(MB // 8)
        for worker in (1, 2):
            host.add(worker, t.overwrite, None, holes=((0, 0),), wanted=True)
            execute(host, lane, worker, worker)
        assert host.values[1] == host.values[2] == MB / 8
        assert host.values[0].min() == 1


def test_spans_tell_time_cpu_and_transfer(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.spin, 1, 0.05)
        host.add(1, t.slow, 1, 0.05)
        host.add(2, t.inc, 1)
        host.add(3, t.array_sum, np.ones(MB))
        before = time.monotonic()
        execute(host, lane, 1, 0, 1, 2, 3)
        spin, slow, quick, large = (span_of(host, i) for i in range(4))
        assert before <= spin.start_s <= slow.start_s - spin.wall_s <= time.monotonic()
        assert 0.045 < spin.cpu_s <= spin.wall_s * 1.05
        assert 0.8 < spin.width < 1.2 or spin.wall_s > 0.07  # a busy machine
        assert slow.wall_s >= 0.05
        assert 0 <= slow.cpu_s < 0.03
        assert quick.cpu_s == -1 == quick.width
        assert large.transfer_s > 0 == spin.transfer_s


# --- orders -----------------------------------------------------------------------------------------------------------


def test_workers_start_and_stop(hosted: Any) -> None:
    with hosted(2) as (host, lane):
        assert sorted(e.worker for e in host.of(WorkerStarted)) == [1, 2]
        host.add(0, t.slow, 1, 0.1)
        lane.run(1, [0])
        lane.stop(1)
        lane.flush()
        assert host.next(WorkerDied) == WorkerDied(1, None, expected=True)
        ran(host, 0)  # it had finished its queue
        assert lane.obituary(1)[0] == "exit code 0"
        lane.stop(2, kill=True)
        assert host.next(WorkerDied, worker=2) == WorkerDied(2, None, expected=True)
        assert lane.obituary(2)[0] == "killed by SIGKILL"
        assert lane.status() == []


def test_a_worker_killed_while_it_starts_is_reported(hosted: Any) -> None:
    with hosted(0) as (host, lane):
        lane.launch([1])
        lane.stop(1, kill=True)
        assert host.next(WorkerDied) == WorkerDied(1, None, expected=True)


def test_a_worker_that_cannot_be_started_is_reported(hosted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with hosted(0) as (host, lane):
        lane.launch([1])
        assert host.next(WorkerDied) == WorkerDied(1, None)
        assert lane.obituary(1)[0].startswith("not started: ")


def test_tasks_not_started_can_be_revoked_and_run_elsewhere(hosted: Any, tmp_path: Path) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.hold, tmp_path)
        tasks = [host.add(i, t.get_pid, i) for i in range(1, 5)]
        lane.run(1, [0, *tasks])
        lane.flush()
        t.wait_for_start(tmp_path)
        lane.revoke(1, [0, 2, 3])
        lane.flush()
        assert sorted(host.next(TasksRevoked, worker=1).tasks) == [2, 3]
        execute(host, lane, 2, 2)
        lane.run(1, [3])  # and back again
        lane.flush()
        t.let_go(tmp_path)
        ran(host, 0, *tasks)
        pids = {status["worker"]: status["pid"] for status in lane.status()}
        assert [host.values[i] for i in tasks] == [pids[1], pids[2], pids[1], pids[1]]


def test_publish_revoke_and_drop_are_answered_while_a_task_runs(hosted: Any, tmp_path: Path) -> None:
    with hosted() as (host, lane):
        host.add(0, t.make_bytes, MB)
        host.add(1, t.hold, tmp_path)
        host.add(2, t.inc, 1)
        execute(host, lane, 1, 0)
        lane.run(1, [1, 2])
        lane.publish(1, 0)
        lane.revoke(1, [2])
        lane.flush()
        host.next(ValuePublished, task=0)
        assert host.next(TasksRevoked).tasks == [2]
        assert len(lane.load(0)) == MB
        lane.drop(1, [0])
        lane.release([0])
        lane.flush()
        t.wait_until(lambda: lane.store_status()["segments"] == 0)
        t.let_go(tmp_path)
        ran(host, 1)


def test_results_before_a_long_task_do_not_wait_for_its_end(hosted: Any, tmp_path: Path) -> None:
    with hosted() as (host, lane):
        host.add(0, t.inc, 1)
        host.add(1, t.inc, 2)
        host.add(2, t.hold, tmp_path)
        lane.run(1, [0, 1, 2])
        lane.flush()
        ran(host, 0, 1)
        t.let_go(tmp_path)
        ran(host, 2)


def test_dependents_of_what_failed_or_was_revoked_are_given_back(hosted: Any, tmp_path: Path) -> None:
    with hosted() as (host, lane):
        host.add(0, t.hold, tmp_path)
        host.add(1, t.fail)
        host.add(2, t.inc, 5)
        host.add(3, t.inc, None, holes=((0, 1),))
        host.add(4, t.inc, None, holes=((0, 2),))
        host.add(5, t.inc, 6)
        lane.run(1, range(6))
        lane.flush()
        t.wait_for_start(tmp_path)
        lane.revoke(1, [2])
        lane.flush()
        host.next(TasksRevoked)
        t.let_go(tmp_path)
        ran(host, 0, 5)
        assert host.next(TaskRaised, task=1).place == 1
        given_back = sorted(i for e in host.of(TasksRevoked) for i in e.tasks)
        assert given_back == [2, 3, 4]


def test_a_task_whose_input_is_nowhere_is_given_back(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(1, t.inc, None, holes=((0, 0),))
        lane.run(1, [1, 77])  # 77 is not even known
        lane.flush()
        assert [i for e in host.of(TasksRevoked) for i in e.tasks] == [1, 77]


def test_dropped_values_are_gone_and_come_again_when_needed(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.inc, 1)
        host.add(1, t.inc, None, holes=((0, 0),))
        execute(host, lane, 1, 0, 1)
        lane.drop(1, [0, 1])
        lane.flush()
        assert held_at(host, lane, 1) == set()
        lane.run(1, [1])
        host.values[0] = 41
        lane.flush()
        host.wait(lambda: host.values[1] == 42)


def test_a_value_dropped_before_it_was_there_is_not_kept(hosted: Any, tmp_path: Path) -> None:
    with hosted() as (host, lane):
        host.add(0, t.hold, tmp_path)
        host.add(1, t.make_array, MB)
        lane.run(1, [0, 1])
        lane.drop(1, [0, 1])
        lane.flush()
        t.wait_for_start(tmp_path)
        t.let_go(tmp_path)
        ran(host, 0, 1)
        assert held_at(host, lane, 1) == set()


def test_memory_of_released_values_is_used_again_once_nobody_reads_it(hosted: Any) -> None:
    with hosted() as (host, lane):
        for i in range(30):
            host.add(i, t.make_array, MB, wanted=True)
            execute(host, lane, 1, i)
            host.next(ValuePublished, task=i)
            array = lane.load(i)
            lane.drop(1, [i])
            lane.release([i])
            lane.flush()
            assert array.sum() == MB / 8  # released, but still read here
            del array
        t.wait_until(lambda: lane.store_status()["segments"] == 0)
        # All of them went through a few MB of the worker's arena.
        host.add(99, t.make_array, MB, wanted=True)
        execute(host, lane, 1, 99)
        host.next(ValuePublished, task=99)
        assert lane._publications._parcels[99][1][2] < 8 * MB


def test_a_copy_that_nobody_opened_is_given_back_when_its_task_runs_here_too(hosted: Any, tmp_path: Path) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.make_array, MB, wanted=True)
        execute(host, lane, 1, 0)
        host.next(ValuePublished, task=0)
        host.add(1, t.hold, tmp_path)
        host.add(2, t.array_sum, None, holes=((0, 0),))
        lane.run(2, [1, 2])
        lane.revoke(2, [2])  # so the copy that came for it stays unopened
        lane.run(2, [0])
        lane.flush()
        host.next(TasksRevoked)
        t.let_go(tmp_path)
        host.wait(lambda: len([s for e in host.of(WorkerRan) for s in e.spans if s.task == 0]) == 2)
        lane.drop(2, [0])
        lane.drop(1, [0])
        lane.release([0])
        lane.flush()
        t.wait_until(lambda: lane.store_status()["segments"] == 0)


def test_published_values_of_a_dead_worker_stay_readable(hosted: Any) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.make_array, MB, wanted=True)
        host.add(1, t.array_sum, None, holes=((0, 0),), wanted=True)
        execute(host, lane, 1, 0)
        host.next(ValuePublished, task=0)
        lane.stop(1, kill=True)
        host.next(WorkerDied)
        execute(host, lane, 2, 1)
        assert host.values[1] == MB / 8
        assert lane.load(0).sum() == MB / 8
        lane.release([0])
        lane.flush()
        gc.collect()
        t.wait_until(lambda: lane.store_status()["segments"] == 0)
        assert 1 not in lane._publications._fds


@pytest.mark.parametrize("settings", [{}, {"idle_timeout_s": 0.04}])
def test_the_clock_ticks_while_there_are_workers(hosted: Any, settings: Any) -> None:
    with hosted(1, **settings) as (host, lane):
        host.wait(lambda: len(host.of(WorkersIdled)) >= 3)
        lane.stop(1)
        lane.flush()
        host.next(WorkerDied)


def test_many_tasks_with_large_messages_do_not_block_the_caller(hosted: Any, tmp_path: Path) -> None:
    with hosted(small_bytes=1 << 20) as (host, lane):
        host.add(0, t.hold, tmp_path)
        tasks = [host.add(i, len, t.make_bytes(500_000, i), wanted=True) for i in range(1, 40)]
        lane.run(1, [0])
        lane.flush()
        for i in tasks:
            lane.run(1, [i])
            lane.flush()  # 20 MB, while the worker is busy
        t.wait_for_start(tmp_path)
        t.let_go(tmp_path)
        ran(host, *tasks)
        assert {host.values[i] for i in tasks} == {500_000}


# --- surroundings -----------------------------------------------------------------------------------------------------


def test_workers_follow_the_owner_s_directory_and_path(
    hosted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hosted() as (host, lane):
        host.add(0, os.getcwd)
        execute(host, lane, 1, 0)
        assert host.values[0] == os.getcwd()
        (tmp_path / "module_of_mine.py").write_text("def answer(): return 42\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        import module_of_mine

        host.add(1, os.getcwd)
        host.add(2, module_of_mine.answer, wanted=True)
        execute(host, lane, 1, 1, 2)
        assert host.values[1] == str(tmp_path)
        assert host.values[2] == 42


def test_modules_are_imported_in_advance_and_wrong_guesses_are_harmless(hosted: Any) -> None:
    with hosted(0) as (host, lane):
        lane.launch([1], ["no_such_module", "colorsys"])
        tasks = itertools.count()

        def imported() -> bool:
            execute(host, lane, 1, task := host.add(next(tasks), t.get_modules, wanted=True))
            return "colorsys" in host.values[task]

        t.wait_until(imported)


def test_a_bare_worker_is_small_and_imports_nothing_heavy(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.get_modules, wanted=True)
        execute(host, lane, 1, 0)
        heavy = {
            "numpy",
            "pandas",
            "pyarrow",
            "dask",
            "cloudpickle",
            "psutil",
            "dataclasses",
            "asyncio",
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
            execute(host, lane, 1, 0)
            assert host.values[0] == expected


def test_strings_hash_alike_in_all_workers(hosted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with hosted(2) as (host, lane):
        for worker in (1, 2):
            host.add(worker, str.__hash__, "headrace")
            execute(host, lane, worker, worker)
        assert host.values[1] == host.values[2]


def test_functions_travel_by_value_when_nobody_could_import_them(hosted: Any) -> None:
    offset = 5

    def local(x: int) -> int:
        return x + offset

    with hosted() as (host, lane):
        host.add(0, local, 1)
        host.add(1, lambda x: local(x) * 2, 1)
        execute(host, lane, 1, 0, 1)
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
            execute(host, lane, 1, task)
            assert host.values[task] == 10 * factor
        assert len(sent) == 2


def test_many_functions_are_forgotten_again(hosted: Any) -> None:
    with hosted() as (host, lane):
        makers = [eval(f"lambda: {i}") for i in range(5000)]
        for i, fn in enumerate(makers):
            host.add(i, fn)
        for start in range(0, 5000, 100):
            execute(host, lane, 1, *range(start, start + 100))
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
            execute(host, lane, 1, *tasks)
            assert [host.values[i] for i in tasks] == [i + job * MB / 8 for i in range(3)]
        t.wait_until(lambda: lane.store_status()["segments"] <= 12)
        assert lane._publications._arena.stats()["high_water_bytes"] < 20 * MB


def test_the_owner_s_unused_memory_goes_back_to_the_system(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.values[0] = np.ones(MB)
        host.add(1, t.array_sum, None, holes=((0, 0),), wanted=True)
        execute(host, lane, 1, 1)
        assert lane._publications._arena.stats()["resident_bytes"] >= 8 * MB
        lane.release([0])
        lane.flush()
        t.wait_until(lambda: lane.store_status()["segments"] == 0)
        for _ in range(10):
            lane._tend()  # as the clock does, twice a second
        assert lane._publications._arena.stats()["resident_bytes"] == 0


# --- what cannot travel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["argument", "function", "input"])
def test_an_unpicklable_task_is_named_and_nothing_of_it_is_sent(hosted: Any, where: str) -> None:
    bad = t.make_unpicklable()
    with hosted() as (host, lane):
        if where == "argument":
            host.add(0, t.collect, 1, bad)
        elif where == "function":
            host.add(0, bad["lock"].inner.acquire)
        else:
            host.values[9] = bad
            host.add(0, t.identity, None, holes=((0, 9),))
        host.add(1, t.inc, 1)
        lane.run(1, [0, 1])
        lane.flush()
        assert host.next(TaskUnpicklable) == TaskUnpicklable(0, 1)
        assert isinstance(host.errors[0], UnpicklableError)
        assert "Task task-0 cannot go to a worker process with that. Use lane='auto' or" in str(host.errors[0])
        assert isinstance(host.errors[0].__cause__, TypeError)
        if where == "argument":
            assert "args[1]['lock'].inner" in str(host.errors[0])
        ran(host, 1)
        assert not any(s.task == 0 for e in host.of(WorkerRan) for s in e.spans)


def test_an_unpicklable_result_is_named_when_it_is_wanted_or_published(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.make_unpicklable, wanted=True)
        host.add(1, t.make_unpicklable)
        host.add(2, len, None, holes=((0, 1),), wanted=True)
        lane.run(1, [0, 1, 2])
        lane.flush()
        assert host.next(TaskUnpicklable) == TaskUnpicklable(0, 1)
        assert "['lock'].inner" in str(host.errors[0])
        assert "The result of task task-0 cannot leave a worker process with that. Use lane='auto'" in str(
            host.errors[0]
        )
        ran(host, 1, 2)
        assert host.values == {2: 1}  # where it was made it can be used
        lane.publish(1, 1)
        lane.flush()
        assert host.next(TaskUnpicklable, task=1) == TaskUnpicklable(1, 1)
        assert isinstance(host.errors[1], UnpicklableError)
        assert "The result of task task-1 cannot leave" in str(host.errors[1])


def test_a_result_whose_unpickling_fails_in_the_owner_fails_its_task(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.make_unloadable, wanted=True)
        host.add(1, t.inc, 1)
        lane.run(1, [0, 1])
        lane.flush()
        ran(host, 1)
        assert host.next(TaskRaised) == TaskRaised(0, 1)
        assert isinstance(host.errors[0], t.TaskError)
        assert 0 not in host.values


def test_an_input_whose_unpickling_fails_fails_every_task_that_asks(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.values[0] = t.Unloadable()
        for i in (1, 2):
            host.add(i, t.identity, None, holes=((0, 0),))
            lane.run(1, [i])
        lane.flush()
        for i in (1, 2):
            host.next(TaskRaised, task=i)
            assert isinstance(host.errors[i], t.TaskError)
