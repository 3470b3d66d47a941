"""Callbacks and dask.diagnostics: what they are told, and that they are told the same as by dask's own scheduler."""

from __future__ import annotations

import io
from operator import add
from typing import Any

import dask
import pytest
from dask import delayed
from dask._task_spec import Alias
from dask.callbacks import Callback
from dask.diagnostics import CacheProfiler, Profiler, ProgressBar, ResourceProfiler
from dask.local import get_sync

from headrace.testing import TaskError, collect, fail, identity, inc, slow, sum_up
from headrace_dask import get

pytestmark = pytest.mark.shares_runtime

GRAPH = {
    "data": 1,
    "a": (inc, "data"),
    "b": (inc, "a"),
    "c": (add, "a", "b"),
    "alias": Alias("alias", "c"),
    "out": (add, "alias", "data"),
    "not needed": (fail,),
}


class Recorder(Callback):
    """Writes down what it is told, in a form that does not depend on the order among independent tasks."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.states: list[dict[str, Any]] = []

    def _start(self, dsk: Any) -> None:
        self.events.append(("start", sorted(dsk, key=str)))

    def _start_state(self, dsk: Any, state: Any) -> None:
        self.states.append({name: _frozen(part) for name, part in state.items()})
        self.events.append(("start_state", sorted(dsk, key=str)))

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:
        assert key in state["running"]
        assert key not in state["ready"]
        assert key not in state["waiting"]
        self.events.append(("pretask", key, sorted(dsk, key=str)))

    def _posttask(self, key: Any, result: Any, dsk: Any, state: Any, worker: Any) -> None:
        assert key in state["finished"]
        assert key not in state["running"]
        self.states.append({name: _frozen(part) for name, part in state.items() if name not in ("ready", "running")})
        self.events.append(("posttask", key, result))

    def _finish(self, dsk: Any, state: Any, failed: bool) -> None:
        self.events.append(("finish", failed))


def _frozen(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _frozen(value) for key, value in part.items()}
    return sorted(part, key=str) if isinstance(part, (set, list)) else part


def test_told_as_dask_tells_it(lane: str) -> None:
    """The graph has one order only, so every call and every state in between must be the same."""
    ours, theirs = Recorder(), Recorder()
    needed = {key: node for key, node in GRAPH.items() if key != "not needed"}  # older dask would run that too
    with ours:
        assert get(needed, ["out", "c"]) == (6, 5)
    with theirs:
        assert get_sync(needed, ["out", "c"]) == (6, 5)
    assert [event for event in ours.events if event[0] != "pretask"] == [
        event for event in theirs.events if event[0] != "pretask"
    ]
    assert {event[:2] for event in ours.events if event[0] == "pretask"} == {
        event[:2] for event in theirs.events if event[0] == "pretask"
    }
    assert ours.states == theirs.states


def test_every_task_is_told_once(lane: str) -> None:
    recorder = Recorder()
    dsk: dict[Any, Any] = {("t", i): (inc, -i) for i in range(2, 300)}
    dsk["out"] = (sum_up, list(dsk))
    with recorder:
        get(dsk, "out")
    for name in ("pretask", "posttask"):
        keys = [event[1] for event in recorder.events if event[0] == name]
        assert sorted(map(str, keys)) == sorted(map(str, dsk))
    before: set[Any] = set()
    for event in recorder.events:
        if event[0] == "pretask":
            before.add(event[1])
        if event[0] == "posttask":
            assert event[1] in before


def test_failure_is_told(lane: str) -> None:
    recorder = Recorder()
    with recorder, pytest.raises(TaskError):
        get({"a": (fail,), "b": (inc, "a")}, "b")
    assert recorder.events[-1] == ("finish", True)


def test_failing_callback_ends_the_compute(lane: str) -> None:
    def stop(key: Any, dsk: Any, state: Any) -> None:
        raise RuntimeError("enough")

    finished: list[bool] = []
    callback = Callback(pretask=stop, finish=lambda dsk, state, failed: finished.append(failed))
    with callback, pytest.raises(RuntimeError, match="enough"):
        get(GRAPH, "out")
    assert finished == [True]
    assert get(GRAPH, "out") == 6


def test_wrong_graph_finishes_started_callbacks() -> None:
    recorder = Recorder()
    with recorder, pytest.raises(KeyError):
        get(GRAPH, "nope")
    assert [event[0] for event in recorder.events] == ["start", "finish"]


def test_given_callbacks_replace_active_ones() -> None:
    active, given = Recorder(), Recorder()
    with active:
        get(GRAPH, "out", callbacks=[given._callback])
    assert active.events == []
    assert given.events[-1] == ("finish", False)


def test_nested_compute_is_not_told() -> None:
    recorder = Recorder()
    with recorder:
        get({"a": (lambda: get({"inner": (inc, 1)}, "inner"),)}, "a")
    assert {event[1] for event in recorder.events if event[0] == "pretask"} == {"a"}


def test_progress_bar(lane: str) -> None:
    out = io.StringIO()
    with ProgressBar(out=out, dt=0.005):
        parts = [delayed(slow)(i, 0.01) for i in range(30)]
        assert delayed(sum_up)(parts).compute() == sum(range(30))
    shown = out.getvalue()
    assert shown.rstrip().split("\r")[-1].startswith("[########################################] | 100% Completed")
    percents = [int(line.split("|")[1].split("%")[0]) for line in shown.split("\r") if "%" in line]
    assert percents == sorted(percents)
    assert any(0 < percent < 100 for percent in percents)


def test_profiler(lane: str) -> None:
    with Profiler() as profiler:
        get(GRAPH, "out")
    assert {record.key for record in profiler.results} == {"a", "b", "c", "alias", "out"}
    for record in profiler.results:
        assert profiler.start_time <= record.start_time <= record.end_time <= profiler.end_time
        assert "headrace" in record.worker_id or "Thread" in record.worker_id


def test_profiler_times_the_task_itself(lane: str) -> None:
    with Profiler() as profiler:
        get({("slow", i): (slow, i, 0.1) for i in range(2)}, [("slow", i) for i in range(2)])
    assert all(record.end_time - record.start_time >= 0.1 for record in profiler.results)


def test_resource_profiler() -> None:
    with ResourceProfiler(dt=0.01) as profiler:
        get({"a": (slow, 1, 0.1)}, "a")
    assert profiler.results
    assert all(record.mem > 0 for record in profiler.results)


def test_cache_profiler(lane: str) -> None:
    sizes: list[Any] = []

    def metric(value: Any) -> int:
        sizes.append(value)
        return 1

    with CacheProfiler(metric=metric) as profiler:
        get(GRAPH, "out")
    assert sorted(sizes) == [2, 3, 5, 5, 6]
    assert {record.key for record in profiler.results} == {"a", "b", "c", "alias", "out"}
    freed = {record.key: record.free_time for record in profiler.results}
    assert freed["b"] <= freed["out"]


def test_opportunistic_cache(lane: str) -> None:
    pytest.importorskip("cachey")
    from dask.cache import Cache

    calls: list[int] = []

    def costly(x: int) -> int:
        calls.append(x)
        return x + 1

    cache = Cache(1e6)
    cache.cache.limit = 0  # everything is worth keeping
    with cache:
        for _ in range(2):
            assert get({"a": (costly, 1), "out": (identity, "a")}, "out", lane="inline") == 2
    assert calls == [1]


@pytest.mark.parametrize("size", [10, 100_000])
def test_cached_results_are_the_results(lane: str, size: int) -> None:
    pytest.importorskip("cachey")
    np = pytest.importorskip("numpy")
    from dask.cache import Cache

    with Cache(1e9):
        for _ in range(2):
            total, ones = get({"ones": (np.ones, size), "sum": (np.sum, "ones")}, ["sum", "ones"])
            assert total == size == ones.sum()


@pytest.mark.parametrize("known", [1, 0, [], "text"])
def test_values_that_are_known_already(lane: str, known: Any) -> None:
    dsk = {"b": (identity, "a"), "c": (collect, "b", "a", 1), "not needed": (fail,)}
    plain: dict[Any, Any] = {"a": known, "other": 2}
    watched = dict(plain)
    recorder = Recorder()
    expected = get(dsk, "c", cache=plain)
    with recorder:
        assert get(dsk, "c", cache=watched) == expected == ((known, known, 1), {})
    assert watched == plain == {"a": known, "other": 2, "c": expected}
    assert [event[:2] for event in recorder.events if event[0] == "posttask"] == [("posttask", "b"), ("posttask", "c")]
    assert recorder.states[0]["cache"] == {"a": known}


def test_known_arrays(lane: str) -> None:
    np = pytest.importorskip("numpy")
    with Recorder():
        assert get({"sum": (np.sum, "array")}, "sum", cache={"array": np.ones(3)}) == 3


def test_a_task_whose_value_is_known_is_not_told() -> None:
    recorder = Recorder()
    with recorder:
        assert get(GRAPH, "out", cache={"b": 10}) == 13
    assert [event[1] for event in recorder.events if event[0] == "posttask"] == ["a", "c", "alias", "out"]


def test_registered_callback_is_told_by_computes_of_collections() -> None:
    recorder = Recorder()
    recorder.register()
    try:
        with dask.config.set(scheduler="headrace"):
            assert delayed(inc)(1).compute() == 2
    finally:
        recorder.unregister()
    assert [event[0] for event in recorder.events] == ["start", "start_state", "pretask", "posttask", "finish"]
