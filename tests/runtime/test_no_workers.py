"""When no worker process can be started: the error says why, and lane auto does without."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headrace import testing
from headrace.errors import InternalError, WorkerDied
from headrace.graph import Graph
from headrace.lanes.processes.io_thread import IoThread
from headrace.runtime import Runtime
from headrace.sched.policy import HOLDS, Family

GRAPH = Graph(["a", "b"], [(testing.spin, (1, 0.01), None, ())] * 2, [()] * 2, ["f"] * 2, [0, 1])


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")


@pytest.mark.parametrize("how", ["run", "submit"])
def test_the_error_says_why(how: str) -> None:
    why = r"no worker process could be started.* not started: .*/nowhere/py"
    with Runtime(lane="processes", num_workers=1) as rt, pytest.raises(WorkerDied, match=why):
        rt.run(GRAPH) if how == "run" else rt.submit(testing.inc, 1).result(timeout=30)


def test_an_interpreter_that_ends_at_once_is_no_fault_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    why = r"no worker process could be started.*exit code 1 before it was ready"
    with Runtime(lane="processes", num_workers=1) as rt, pytest.raises(WorkerDied, match=why):
        rt.run(GRAPH)


def refuse(*_: Any) -> None:
    raise RuntimeError("can't start new thread")


def test_no_thread_is_left_to_start_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IoThread, "start", refuse)
    with Runtime(lane="processes", num_workers=1) as rt:
        with pytest.raises(WorkerDied, match=r"no worker process could be started.* not started: can't start new thre"):
            rt.submit(testing.inc, 1).result(timeout=30)
        with pytest.raises(WorkerDied, match=r"not started: can't start new thread"):
            rt.run(GRAPH)
        assert rt.run(GRAPH, lane="auto") == [1, 1]


@contextmanager
def no_descriptor() -> Iterator[None]:
    """This process may open no other one."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("how", ["run", "submit"])
def test_no_descriptor_is_left_for_the_lane(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    why = r"no worker process could be started.* not started: .*Too many open files"
    with Runtime(lane="processes", num_workers=2) as rt:
        with no_descriptor(), pytest.raises(WorkerDied, match=why):
            rt.run(GRAPH) if how == "run" else rt.submit(testing.inc, 1).result(timeout=30)
        assert rt.submit(testing.inc, 1).result(timeout=30) == 2


def test_lane_auto_does_without_descriptors(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(Family, "_slow_kind", lambda *_: HOLDS)  # what takes many runs to find out on a busy machine
    monkeypatch.setattr("headrace.engine._LAUNCH_S_PER_MODULE", 0.0)  # worth a worker, whatever tests have imported
    indices = list(range(30))
    calls: list[Any] = [(testing.spin, (1, 0.02), None, ())] * 30
    graph = Graph(indices[:], calls, [()] * 30, ["f"] * 30, indices)
    with Runtime(lane="auto", num_workers=2) as rt:
        with no_descriptor():
            assert rt.run(graph) == [1] * 30
        assert rt._engine._machine.failed_starts > 0
    assert capsys.readouterr().err == ""


def test_no_thread_is_left_to_tell_that_the_scheduler_broke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime(lane="threads", num_workers=1) as rt:
        future = rt.submit(testing.hold, tmp_path)
        testing.wait_for_start(tmp_path)
        monkeypatch.setattr(rt._engine._machine, "tasks", None)
        monkeypatch.setattr("headrace.engine.start_aside", refuse)
        with pytest.raises(InternalError, match="the scheduler broke"):
            rt.run(GRAPH)
        with pytest.raises(InternalError, match="the scheduler broke"):
            future.result(timeout=30)
        testing.let_go(tmp_path)
        assert rt.submit(testing.inc, 1).result(timeout=30) == 2


def test_lane_auto_does_without(capsys: Any) -> None:
    with Runtime(lane="auto", num_workers=2) as rt:
        assert rt.run(GRAPH) == [1, 1]
    assert capsys.readouterr().err == ""
