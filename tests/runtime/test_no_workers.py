"""When no worker process can be started: the error says why, and lane auto does without."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from headrace import testing
from headrace.errors import WorkerDied
from headrace.graph import Graph
from headrace.runtime import Runtime

GRAPH = Graph(["a", "b"], [(testing.spin, (1, 0.01), None, ())] * 2, [()] * 2, ["f"] * 2, [0, 1])


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")


@pytest.mark.parametrize("how", ["run", "submit"])
def test_the_error_says_why(how: str) -> None:
    with Runtime(lane="processes", num_workers=1) as rt, pytest.raises(WorkerDied, match=r"not started: .*/nowhere/py"):
        rt.run(GRAPH) if how == "run" else rt.submit(testing.inc, 1).result(timeout=30)


def test_lane_auto_does_without(capsys: Any) -> None:
    with Runtime(lane="auto", num_workers=2) as rt:
        assert rt.run(GRAPH) == [1, 1]
    assert capsys.readouterr().err == ""
