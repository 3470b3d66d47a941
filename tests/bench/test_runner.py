"""The driver with real children: what runs is timed, what goes wrong is shown, and the rest goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from headrace_dask.bench.process import BoundExceeded, ChildDied, ChildFailed, ChildProcess
from headrace_dask.bench.records import Report
from headrace_dask.bench.runner import Listener, Plan, Runner
from headrace_dask.bench.schedulers import module_of
from headrace_dask.bench.workloads import own_graph, select

TWO = ("sync", "threads")


def run(graphs: str, *names: str, schedulers: tuple[str, ...] = TWO, repeats: int = 1, bound_s: float = 60) -> Report:
    workloads = [own_graph(f"{graphs}:{name}") for name in names]
    return Runner(Plan(schedulers, workloads, own=True, repeats=repeats, bound_s=bound_s, starts=0)).run()


def test_every_scheduler_has_a_first_run_and_its_repeats_interleaved(graphs: str) -> None:
    told: list[str] = []
    plan = Plan(TWO, [own_graph(f"{graphs}:chain")], own=True, repeats=2, starts=0)
    report = Runner(plan, Listener(now=told.append)).run()
    record = report.workloads[f"{graphs}:chain"]
    assert [text.partition(": ")[2] for text in told] == [
        f"{name}, {which}" for which in ("first run", "repeat 1", "repeat 2") for name in TWO
    ]
    for cell in record.cells.values():
        assert (cell.status, cell.equality, len(cell.seconds)) == ("ok", "equal", 2)
        assert 0 < cell.value_s < 5
        assert cell.first_s > 0
    assert (record.reference, record.tasks) == ("sync", 3)
    assert record.best_stock() in TWO


def test_collections_and_several_at_once_are_graphs_too(graphs: str) -> None:
    report = run(graphs, "array", "several", "pair_of_datasets", "pair_of_sums")
    assert [cell.equality for record in report.workloads.values() for cell in record.cells.values()] == ["equal"] * 8
    assert report.workloads[f"{graphs}:array"].tasks >= 3


def test_failures_are_shown_and_the_next_workload_goes_on(graphs: str) -> None:
    report = run(graphs, "failing", "dying", "exiting", "unbuildable", "chain", schedulers=("sync",))
    cells = {name.partition(":")[2]: record.cells["sync"] for name, record in report.workloads.items()}
    assert {name: cell.status for name, cell in cells.items()} == {
        "failing": "failed",
        "dying": "failed",
        "exiting": "failed",
        "unbuildable": "failed",
        "chain": "ok",
    }
    assert cells["failing"].error == "ValueError: not today"
    assert "SIGKILL" in cells["dying"].error
    assert cells["unbuildable"].error == "LookupError: no data here"


def test_what_exceeds_the_bound_is_killed_with_its_tree_and_not_run_again(graphs: str) -> None:
    began = time.monotonic()
    report = run(graphs, "slow", "chain", repeats=3, bound_s=1.5)
    assert time.monotonic() - began < 50
    slow, chain = report.workloads.values()
    assert Path("running").exists()
    assert [cell.status for cell in slow.cells.values()] == ["timeout", "timeout"]
    assert [cell.status for cell in chain.cells.values()] == ["ok", "ok"]


def test_what_a_dead_child_left_behind_is_ended(graphs: str) -> None:
    # That the orphan is gone is what every test is held to.
    report = run(graphs, "orphaning", schedulers=("sync",))
    assert report.workloads[f"{graphs}:orphaning"].cells["sync"].status == "failed"


def test_a_different_result_does_not_count(graphs: str) -> None:
    record = run(graphs, "differing").workloads[f"{graphs}:differing"]
    assert [cell.equality for cell in record.cells.values()] == ["equal", "different"]
    assert record.cells["threads"].error == "its result differs from that of sync"
    assert record.best_stock() == "sync"
    assert record.ratio("threads", "sync") is None


def test_a_result_that_differs_by_rounding_counts(graphs: str) -> None:
    record = run(graphs, "rounding").workloads[f"{graphs}:rounding"]
    assert [cell.equality for cell in record.cells.values()] == ["equal", "close"]
    assert record.ratio("threads", "sync") is not None


def test_schedulers_that_are_missing_or_broken_are_shown(graphs: str) -> None:
    schedulers = ("sync", "no_such_package:get", "users_graphs:no_such_get", "users_graphs:raise_in_get")
    record = run(graphs, "chain", schedulers=schedulers).workloads[f"{graphs}:chain"]
    assert [cell.status for cell in record.cells.values()] == ["ok", "failed", "failed", "failed"]
    assert "does not start: ModuleNotFoundError" in record.cells["no_such_package:get"].error
    assert "does not start: AttributeError" in record.cells["users_graphs:no_such_get"].error
    assert record.cells["users_graphs:raise_in_get"].error == "RuntimeError: this scheduler is broken"


def test_a_scheduler_that_is_not_installed_is_shown_as_missing(graphs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_dask.bench.runner.is_installed", lambda name: name != "ray")
    record = run(graphs, "chain", schedulers=("sync", "ray")).workloads[f"{graphs}:chain"]
    assert [cell.status for cell in record.cells.values()] == ["ok", "missing"]


def test_a_scheduler_that_returns_the_wrong_thing_is_found(graphs: str) -> None:
    report = run(graphs, "chain", schedulers=("sync", "users_graphs:get_nothing"))
    assert report.workloads[f"{graphs}:chain"].cells["users_graphs:get_nothing"].equality == "different"


def test_a_slow_one_is_not_repeated_when_its_median_would_tell_no_more(graphs: str) -> None:
    workloads = [own_graph(f"{graphs}:chain")]
    plan = Plan(TWO, workloads, own=True, repeats=2, starts=0, hopeless_s=0.0, hopeless_times=1.0)
    record = Runner(plan).run().workloads[f"{graphs}:chain"]
    assert sorted(len(cell.seconds) for cell in record.cells.values()) == [0, 2]
    assert all(cell.value_s > 0 for cell in record.cells.values())


def test_past_its_budget_a_workload_is_repeated_only_once(graphs: str) -> None:
    workloads = [own_graph(f"{graphs}:chain")]
    record = (
        Runner(Plan(TWO, workloads, own=True, repeats=3, starts=0, budget_s=0.0)).run().workloads[f"{graphs}:chain"]
    )
    assert [len(cell.seconds) for cell in record.cells.values()] == [1, 1]


@pytest.mark.timeout(300)
def test_memory_and_starts_are_measured_in_processes_of_their_own() -> None:
    # 400 MB in one task: less would hide in what an interpreter needs.
    plan = Plan(("sync",), select(["array400mb"]), repeats=0, memory=frozenset({"array400mb"}), starts=1)
    report = Runner(plan).run()
    cell = report.workloads["array400mb"].cells["sync"]
    assert (cell.status, cell.seconds) == ("ok", [])
    assert 400e6 < cell.peak_bytes < 900e6
    start = report.starts["sync"]
    assert start.error == ""
    assert 0 < start.first_s < start.python_s


def run_once(child: ChildProcess, workload: str, *, graph: bool = False) -> None:
    child.request("load", workload=workload, graph=graph, limit_s=60)
    child.request("build", limit_s=60)
    child.request("run", limit_s=60)


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes", "distributed"])
def test_stock_schedulers_and_their_workers_know_nothing_of_headrace(
    graphs: str, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", str(tmp_path))  # distributed's folder there stays
    with ChildProcess() as child:
        child.request("start", scheduler=scheduler, module=module_of(scheduler), limit_s=60)
        child.request("first", limit_s=60)
        run_once(child, "python400")
        run_once(child, f"{graphs}:beside_the_suite", graph=True)  # has the digest's and all workloads' modules, too
        child.close()


@pytest.mark.parametrize("lane", ["inline", "processes"])
def test_headrace_is_where_its_tasks_run_and_would_be_found(graphs: str, lane: str) -> None:
    with ChildProcess() as child:
        child.request("start", scheduler=f"headrace:{lane}", module="headrace_dask", limit_s=60)
        run_once(child, "python400")
        with pytest.raises(ChildFailed, match=r"AssertionError: here is \['headrace'"):
            run_once(child, f"{graphs}:beside_the_suite", graph=True)
        child.close()


def test_children_find_what_is_on_the_users_own_path(graphs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("more")
    folder.mkdir()
    (folder / "further_graphs.py").write_text("from users_graphs import chain")
    monkeypatch.setenv("PYTHONPATH", str(folder.absolute()))
    with ChildProcess() as child:
        child.request("start", scheduler="sync", module="dask.local", limit_s=60)
        run_once(child, "further_graphs:chain", graph=True)


def test_requests_to_a_child_that_is_gone_say_how_it_ended(graphs: str) -> None:
    with ChildProcess() as child:
        child.request("start", scheduler="sync", module="dask.local", limit_s=60)
        child.request("load", workload=f"{graphs}:dying", graph=True, limit_s=60)
        child.request("build", limit_s=60)
        with pytest.raises(ChildDied, match="killed by SIGKILL"):
            child.request("run", limit_s=60)


def test_a_child_outlives_an_error_but_not_its_bound(graphs: str) -> None:
    with ChildProcess() as child:
        with pytest.raises(ChildFailed, match="ModuleNotFoundError"):
            child.request("start", scheduler="sync", module="no_such_module", limit_s=60)
        child.request("start", scheduler="sync", module="dask.local", limit_s=60)
        assert child.request("first", limit_s=60)["seconds"] > 0
        with pytest.raises(BoundExceeded):
            child.request("first", limit_s=0)


def test_a_pool_that_is_killed_beyond_the_bound_leaves_no_semaphore(graphs: str) -> None:
    # That they are gone is what every test is held to.
    before = set(os.listdir("/dev/shm"))
    with ChildProcess() as child:
        child.request("start", scheduler=f"{graphs}:get_beside_a_pool", module=graphs, limit_s=60)
        child.request("first", limit_s=60)
        assert [name for name in os.listdir("/dev/shm") if name.startswith("sem.mp-") and name not in before]
        with pytest.raises(BoundExceeded):
            child.request("first", limit_s=0)
