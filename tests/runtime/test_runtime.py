"""Runtime as its users see it: an Executor, graphs, failures, cancellation, nesting; over every lane."""

from __future__ import annotations

import contextvars
import functools
import gc
import itertools
import threading
import time
import traceback
import weakref
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from headrace import runtime, testing
from headrace.config import LANES, ConfigError
from headrace.errors import InternalError
from headrace.graph import Graph
from headrace.runtime import Runtime, Stored
from headrace.task import Hole


class Build:
    """Builds graphs by hand: each call returns the index of its task."""

    def __init__(self) -> None:
        self.graph = Graph()

    def call(self, fn: Any, *args: Any, holes: tuple[Hole, ...] = ()) -> int:
        deps: dict[int, None] = {}
        for _, dep in holes:
            deps.update(dict.fromkeys((dep,) if isinstance(dep, int) else dep))
        index = len(self.graph.calls)
        self.graph.keys.append(f"{fn.__name__}-{index}")
        self.graph.calls.append((fn, args, None, holes))
        self.graph.deps.append(tuple(deps))
        self.graph.families.append(fn.__name__)
        return index

    def on(self, fn: Any, *deps: int) -> int:
        return self.call(fn, *[None] * len(deps), holes=tuple(enumerate(deps)))

    def literal(self, value: Any) -> int:
        index = len(self.graph.calls)
        self.graph.keys.append(f"literal-{index}")
        self.graph.calls.append(None)
        self.graph.deps.append(())
        self.graph.families.append("literal")
        self.graph.literals[index] = value
        return index

    def wanting(self, *outputs: int) -> Graph:
        self.graph.outputs = list(outputs)
        return self.graph


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rt(lane: str) -> Any:
    with Runtime(lane=lane, num_workers=2) as made:
        yield made


def test_is_an_executor(rt: Runtime) -> None:
    assert isinstance(rt, Executor)
    assert list(rt.map(testing.add, [1, 2, 3], [10, 20, 30])) == [11, 22, 33]


def test_futures_may_stand_anywhere_in_arguments(rt: Runtime) -> None:
    one, two = rt.submit(testing.inc, 0), rt.submit(testing.inc, 1)
    nested = rt.submit(testing.collect, [one, (two, {"k": one})], x={"y": [two]}, z=3)
    assert nested.result() == (([1, (2, {"k": 1})],), {"x": {"y": [2]}, "z": 3})


def test_independent_futures_run_at_the_same_time(lane: str, tmp_path: Path) -> None:
    if lane == "inline":
        pytest.skip("one thing at a time is what the inline lane is")
    with Runtime(lane=lane, num_workers=2) as rt:
        a = rt.submit(testing.meet, tmp_path, "a", "b")
        b = rt.submit(testing.meet, tmp_path, "b", "a")
        assert {a.result(), b.result()} == {"a", "b"}


def test_exception_arrives_as_itself_and_spreads(rt: Runtime) -> None:
    bad = rt.submit(testing.fail, "no")
    after = rt.submit(testing.inc, bad)
    with pytest.raises(testing.TaskError, match="no"):
        after.result()
    late = rt.submit(testing.inc, bad)
    with pytest.raises(testing.TaskError, match="no"):
        late.result()


@pytest.mark.parametrize("raiser", [testing.raise_system_exit, testing.raise_keyboard_interrupt])
def test_a_task_that_raises_an_exit_only_fails(rt: Runtime, raiser: Any) -> None:
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        rt.submit(raiser).result()
    assert rt.submit(testing.inc, 1).result() == 2


def test_cancel_takes_dependents_with_it(lane: str, tmp_path: Path) -> None:
    with Runtime(lane=lane, num_workers=1) as rt:
        first = rt.submit(testing.hold, tmp_path)
        second = rt.submit(testing.inc, first)
        third = rt.submit(testing.inc, second)
        assert second.cancel()
        assert second.cancelled()
        assert third.cancelled()
        with pytest.raises(CancelledError):
            third.result()
        testing.wait_for_start(tmp_path)
        assert not first.cancel()
        testing.let_go(tmp_path)
        first.result()


def test_running_is_what_cannot_be_cancelled(lane: str, tmp_path: Path) -> None:
    with Runtime(lane=lane, num_workers=1) as rt:
        first = rt.submit(testing.hold, tmp_path)
        second = rt.submit(testing.inc, first)
        testing.wait_for_start(tmp_path)
        assert first.running()
        assert not first.cancel()
        assert not second.running()
        assert second.cancel()
        assert not second.running()
        testing.let_go(tmp_path)
        first.result()
        assert not first.running()


def test_dropped_futures_free_their_values(rt: Runtime) -> None:
    future = rt.submit(testing.make_bytes, 1 << 20)
    for _ in range(20):
        future = rt.submit(testing.identity, future)
    future.result()
    rt.submit(testing.inc, 0).result()  # the next event takes note of what was dropped
    gc.collect()
    rt.submit(testing.inc, 0).result()
    assert len(rt._engine._jobs.futures.values) <= 3


def test_a_future_that_is_done_does_not_hold_its_arguments(rt: Runtime) -> None:
    value = testing.make_array(1 << 10)
    gone = weakref.ref(value)
    future = rt.submit(len, value)
    del value
    assert future.result() == 1 << 7
    testing.wait_until(lambda: gone() is None)


def test_what_a_function_holds_goes_with_it(rt: Runtime) -> None:
    value = testing.make_array(1 << 10)
    gone = weakref.ref(value)
    assert rt.submit(functools.partial(len, value)).result() == 1 << 7
    call = functools.partial(len, value), (), None, ()
    assert rt.run(Graph(["a"], [call], [()], ["f"], [0])) == [1 << 7]
    del value, call
    testing.wait_until(lambda: gone() is None)


def test_values_of_dropped_futures_go_without_a_further_event(rt: Runtime) -> None:
    futures = [rt.submit(testing.make_array, 1 << 20) for _ in range(3)]
    values = [future.result() for future in futures]
    gone = [weakref.ref(value) for value in values]
    del futures, values
    testing.wait_until(lambda: all(ref() is None for ref in gone), timeout_s=2.0)
    testing.wait_until(lambda: not rt.status()["store"].get("published_bytes"))
    assert not rt.status()["tasks"]["done"]


def test_an_error_goes_with_its_future(rt: Runtime) -> None:
    """Though it holds the frames that it came through, and so the future that it was raised by."""

    def wait_in_vain() -> weakref.ref[Any]:
        local = testing.make_array(1 << 10)
        future = rt.submit(testing.fail)
        with pytest.raises(testing.TaskError):
            future.result()
        return weakref.ref(local)

    gone = wait_in_vain()
    testing.wait_until(lambda: gc.collect() >= 0 and gone() is None, "the end of the error")


def test_an_error_outlives_the_future_that_it_began_with(rt: Runtime) -> None:
    first = rt.submit(testing.fail)
    second = rt.submit(testing.identity, first)
    error = second.exception()
    del first
    gc.collect()
    rt.submit(testing.inc, 0).result()  # the next event takes note of what was dropped
    assert rt.submit(testing.identity, second).exception() is error


def test_a_future_that_the_program_resolves_itself_breaks_nothing(rt: Runtime, tmp_path: Path) -> None:
    future = rt.submit(testing.inc, 1)
    testing.wait_until(future.done)
    held = rt.submit(testing.hold, tmp_path)
    held.set_result("mine")
    testing.let_go(tmp_path)
    assert rt.submit(testing.inc, 2).result() == 3
    assert held.result() == "mine"


def test_graph_runs(rt: Runtime) -> None:
    build = Build()
    leaves = [build.call(testing.inc, i) for i in range(50)]
    total = build.call(sum, None, holes=((0, tuple(leaves)),))
    four = build.literal(4)
    last = build.on(testing.add, total, four)
    assert rt.run(build.wanting(last, four, leaves[3], last)) == [1279, 4, 4, 1279]


def test_empty_graph(rt: Runtime) -> None:
    assert rt.run(Graph()) == []


def test_graph_failure_is_the_tasks_own(rt: Runtime) -> None:
    build = Build()
    bad = build.call(testing.fail, "broken")
    end = build.on(testing.inc, bad)
    with pytest.raises(testing.TaskError, match="broken"):
        rt.run(build.wanting(end))
    assert rt.run(Build().graph) == []


@pytest.mark.parametrize("size_bytes", [0, 1 << 22], ids=["sent", "published"])
def test_a_result_that_cannot_be_unpickled_here_raises_its_own_error_and_names_its_task(size_bytes: int) -> None:
    class Explosive:
        def __reduce__(self) -> Any:
            return explode, (bytes(size_bytes),)

    def explode(_: bytes) -> None:
        try:
            raise KeyError("the fuse")
        except KeyError:
            raise ValueError("unpickle boom")  # noqa: B904  what it came from is to be seen as well

    build = Build()
    build.graph.outputs = [build.call(Explosive)]
    with Runtime(lane="processes", num_workers=1) as rt, pytest.raises(ValueError, match=r"^unpickle boom$") as caught:
        rt.run(build.graph)
    shown = "".join(traceback.format_exception(caught.value))
    assert "The result of task Explosive-0 has come from a worker process" in shown
    assert "KeyError: 'the fuse'" in shown


def test_rerun_raises_from_this_thread(rt: Runtime, tmp_path: Path) -> None:
    build = Build()
    log = build.literal(tmp_path / "log")
    start = build.call(testing.inc, 1)
    end = build.call(testing.fail_first, None, 10**6, None, holes=((0, log), (2, start)))
    with pytest.raises(testing.TaskError):
        rt.run(build.wanting(end), rerun=True)
    assert testing.attempts(tmp_path / "log") == 2


def test_keep_gives_handles_that_later_graphs_take(rt: Runtime) -> None:
    build = Build()
    kept = rt.run(build.wanting(build.call(testing.make_array, 1 << 20, 2.0)), keep=True)[0]
    assert isinstance(kept, Stored)
    again = Build()
    array = again.literal(kept)
    assert rt.run(again.wanting(again.on(testing.array_sum, array)))[0] == kept.result().sum()


def test_observer_sees_every_task_in_the_calling_thread(rt: Runtime) -> None:
    seen: list[tuple[str, int, Any]] = []

    class Observer:
        needs_values = True

        def started(self, index: int) -> None:
            assert threading.current_thread() is threading.main_thread()
            seen.append(("started", index, None))

        def finished(self, index: int, value: Any, worker: str) -> None:
            assert threading.current_thread() is threading.main_thread()
            seen.append(("finished", index, value))

    build = Build()
    a = build.call(testing.inc, 1)
    b = build.on(testing.inc, a)
    assert rt.run(build.wanting(b), observer=Observer()) == [3]
    assert seen.index(("started", a, None)) < seen.index(("finished", a, 2)) < seen.index(("finished", b, 3))
    assert len(seen) == 4


def test_an_observer_that_fails_stops_the_job(rt: Runtime) -> None:
    class Observer:
        needs_values = False

        def started(self, index: int) -> None:
            raise testing.TaskError("observer")

        def finished(self, index: int, value: Any, worker: str) -> None: ...

    build = Build()
    graph = build.wanting(build.call(testing.inc, 1))
    with pytest.raises(testing.TaskError, match="observer"):
        rt.run(graph, observer=Observer())
    assert rt.run(graph) == [2]


def test_several_threads_run_graphs_at_once(rt: Runtime) -> None:
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        build = Build()
        leaves = [build.call(testing.burn, 2000) for _ in range(20)]
        results[number] = rt.run(build.wanting(*leaves))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(result == [testing.burn(2000)] * 20 for result in results.values())


def nested_run(depth: int, rt: Runtime | None = None) -> int:
    """A task that runs a graph of itself, ``depth`` deep, in whatever runtime its process has."""
    if depth == 0:
        return 1
    build = Build()
    parts = [build.call(nested_run, depth - 1, rt) for _ in range(2)]
    return sum((rt or runtime.default()).run(build.wanting(*parts)))


@pytest.mark.parametrize("lane", ["auto", "inline", "threads"])
def test_graphs_inside_tasks_do_not_deadlock(lane: str) -> None:
    with Runtime(lane=lane, num_workers=2) as rt:
        assert nested_run(5, rt) == 32
        assert rt.submit(nested_run, 4, rt).result() == 16


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


def read_variable() -> str:
    return VARIABLE.get()


@pytest.mark.parametrize("lane", ["auto", "inline", "threads"])
def test_context_variables_reach_tasks(lane: str) -> None:
    token = VARIABLE.set("here")
    try:
        with Runtime(lane=lane, num_workers=2) as rt:
            build = Build()
            assert rt.run(build.wanting(*[build.call(read_variable) for _ in range(40)])) == ["here"] * 40
    finally:
        VARIABLE.reset(token)


def test_limit_holds(lane: str, tmp_path: Path) -> None:
    with Runtime(lane=lane, num_workers=4) as rt:
        build = Build()
        spans = [build.call(timed_sleep, 0.02) for _ in range(8)]
        times = sorted(rt.run(build.wanting(*spans), limit=1))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(times))


def timed_sleep(seconds: float) -> tuple[float, float]:
    start = time.perf_counter()
    testing.slow(None, seconds)
    return start, time.perf_counter()


def test_a_thread_stuck_in_a_failed_job_does_not_starve_the_next(tmp_path: Path) -> None:
    with Runtime(lane="threads", num_workers=1) as rt:
        build = Build()
        stuck = [build.call(testing.hold, tmp_path), build.call(testing.hold, tmp_path)]

        class Observer:
            needs_values = False

            def started(self, index: int) -> None:
                testing.wait_for_start(tmp_path)
                raise testing.TaskError("give up")

            def finished(self, index: int, value: Any, worker: str) -> None: ...

        with pytest.raises(testing.TaskError):
            rt.run(build.wanting(*stuck), observer=Observer())
        after = Build()
        assert rt.run(after.wanting(after.call(testing.inc, 1))) == [2]
        testing.let_go(tmp_path)


def test_a_broken_machine_is_reported_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime(lane="auto", num_workers=2) as rt:
        build = Build()
        graph = build.wanting(build.call(testing.inc, 1))
        monkeypatch.setattr(rt._engine._machine, "tasks", None)
        with pytest.raises(InternalError, match="bug of Headrace"):
            rt.run(graph)
        assert rt.run(graph) == [2]


@pytest.mark.parametrize("lane", ["threads", "processes"])
def test_futures_from_before_it_was_replaced_are_still_arguments(lane: str, tmp_path: Path) -> None:
    with Runtime(lane=lane, num_workers=2) as rt:
        done, failed = rt.submit(testing.inc, 1), rt.submit(testing.fail, "no")
        assert (done.result(), type(failed.exception())) == (2, testing.TaskError)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rt._engine._machine, "tasks", None)
            lost = rt.submit(testing.inc, 1)
            with pytest.raises(InternalError):
                lost.result(timeout=20)
        held = rt.submit(testing.hold, tmp_path)
        assert rt.submit(testing.collect, done, [done]).result(timeout=20) == ((2, [2]), {})
        after = rt.submit(testing.inc, failed)
        assert isinstance(after.exception(timeout=20), testing.TaskError)
        assert isinstance(rt.submit(testing.inc, after).exception(timeout=20), testing.TaskError)
        assert isinstance(rt.submit(testing.inc, lost).exception(timeout=20), InternalError)
        testing.let_go(tmp_path)
        assert held.result(timeout=20) == "task"


def test_a_future_that_it_was_replaced_under_is_still_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime(lane="threads", num_workers=1) as rt:
        engine, call = rt._engine, rt._engine._futures._call

        def replaced_meanwhile(*args: Any) -> Any:
            monkeypatch.undo()
            made = call(*args)
            with engine._lock:
                fail_futures, _ = engine._begin_afresh(InternalError("on purpose"))
            fail_futures()
            return made

        done = rt.submit(testing.inc, 1)
        assert done.result(timeout=20) == 2
        monkeypatch.setattr(engine._futures, "_call", replaced_meanwhile)
        assert rt.submit(testing.inc, done).result(timeout=20) == 3


def test_a_shut_down_runtime_says_so() -> None:
    rt = Runtime()
    rt.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        rt.submit(testing.inc, 1)
    with pytest.raises(RuntimeError, match="shut down"):
        rt.run(Graph())


@pytest.mark.parametrize("lane", ["threads", "processes"])
def test_shutting_down_under_a_graph_ends_its_run(lane: str, tmp_path: Path) -> None:
    rt = Runtime(lane=lane, num_workers=1)
    build = Build()
    graph = build.wanting(build.call(testing.hold, tmp_path), build.call(testing.inc, 1))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(rt.run, graph)
        testing.wait_for_start(tmp_path)
        rt.shutdown()
        testing.let_go(tmp_path)
        with pytest.raises(RuntimeError, match="shut down while"):
            running.result(timeout=10)


def test_unknown_lane_is_refused() -> None:
    with Runtime() as rt, pytest.raises(ConfigError, match="threads"):
        rt.run(Graph(), lane="thread")
