"""What the end of a Runtime does to work that comes at the same moment, and what it must not do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from headrace import testing
from headrace.graph import Graph
from headrace.runtime import Runtime
from headrace.shell import pipeline
from headrace.shell.jobs import Job

TIMEOUT_S = 30.0


def test_a_task_that_cannot_wait_for_the_end_cancels_nothing() -> None:
    submitted = threading.Event()
    with Runtime(lane="threads", num_workers=1) as rt:

        def shut_down() -> int:
            submitted.wait(TIMEOUT_S)
            with pytest.raises(RuntimeError, match="wait=False"):
                rt.shutdown(cancel_futures=True)
            return 1

        after = rt.submit(testing.inc, rt.submit(shut_down))
        submitted.set()
        assert after.result(TIMEOUT_S) == 2
        assert rt.submit(testing.inc, 1).result(TIMEOUT_S) == 2


# --- in another thread, in the midst of taking in work ----------------------------------------------------------------


def meanwhile(do: Callable[[], object], call: Callable[..., Any]) -> Callable[..., Any]:
    """What does something in another thread, waits until that is done, and goes on with a call."""

    def hooked(*args: Any, **kwargs: Any) -> Any:
        thread = threading.Thread(target=do)
        thread.start()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
        return call(*args, **kwargs)

    return hooked


def graph(fn: Callable[..., Any], *args: Any) -> Graph:
    return Graph(["task"], [(fn, args, None, ())], [()], ["family"], outputs=[0])


@pytest.fixture(params=["threads", "processes"])
def rt(request: pytest.FixtureRequest) -> Runtime:
    return Runtime(lane=request.param, num_workers=1)


def test_before_a_future_is_taken_in(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    futures = rt._engine._futures
    monkeypatch.setattr(futures, "_call", meanwhile(rt.shutdown, futures._call))
    with pytest.raises(RuntimeError, match="has been shut down"):
        rt.submit(testing.inc, 1)
    assert not futures.open


def test_before_a_future_is_placed(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    futures = rt._engine._futures
    monkeypatch.setattr(futures, "post", meanwhile(rt._engine.stop, futures.post))
    future = rt.submit(testing.inc, 1)
    assert isinstance(future.exception(TIMEOUT_S), RuntimeError)
    assert not rt._engine._machine.tasks


def test_before_a_graph_is_taken_in(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "of_graph", meanwhile(rt.shutdown, Job.of_graph))
    with pytest.raises(RuntimeError, match="has been shut down"):
        rt.run(graph(testing.inc, 1))
    assert len(rt._engine._jobs.by_number) == 1


def test_before_a_graph_is_placed(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = rt._engine._threads
    monkeypatch.setattr(threads, "enter", meanwhile(rt.shutdown, threads.enter))
    with pytest.raises(RuntimeError, match="shut down while"):
        rt.run(graph(testing.inc, 1))
    assert not rt._engine._machine.jobs.keys() - {0}


def test_before_a_pipeline_is_known(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "Pipeline", meanwhile(rt.shutdown, pipeline.Pipeline))
    with pytest.raises(RuntimeError, match="has been shut down"):
        rt.stream(testing.inc)
