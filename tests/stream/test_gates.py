"""Tasks that are done when somebody opens their gate: nobody runs behind them before, and no slot waits for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from headrace.config import LANES
from headrace.graph import Graph
from headrace.runtime import Runtime
from headrace.stream.gate import Gate

TIMEOUT_S = 60.0


@pytest.fixture(params=LANES)
def rt(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(lane=request.param, num_workers=1, check=True) as runtime:
        yield runtime


def gated(gate: Gate, before: Any, behind: Any) -> Graph:
    """``behind`` waits for the gate, ``before`` comes later and does not."""
    calls: list[Any] = [(lambda: gate, (), None, ()), (behind, (1,), None, ()), (before, (2,), None, ())]
    return Graph(["gate", "behind", "before"], calls, [(), (0,), ()], ["gate", "x", "y"], [1, 2], pinned={0, 2})


def test_what_depends_on_a_gate_waits_and_others_run(rt: Runtime) -> None:
    gate = Gate()
    for _ in range(3):  # open from the second time on
        assert rt.run(gated(gate, lambda x, gate=gate: gate.open() or x, str)) == ["1", 2]


def test_a_gate_is_opened_by_another_thread(rt: Runtime) -> None:
    gate = Gate()
    reached = threading.Event()
    opener = threading.Thread(target=lambda: (reached.wait(TIMEOUT_S), gate.open()))
    opener.start()
    assert rt.run(gated(gate, lambda x: reached.set() or x, str)) == ["1", 2]
    opener.join()


def test_a_gate_may_open_with_an_error(rt: Runtime) -> None:
    gate = Gate()
    with pytest.raises(KeyError, match="closed"):
        rt.run(gated(gate, lambda x: gate.open(KeyError("closed")), str))
    gate.open()  # the first one counts
    with pytest.raises(KeyError, match="closed"):
        gate.wait()


def test_a_gate_that_opens_after_its_graph_has_ended_is_nobodys(rt: Runtime) -> None:
    gate = Gate()
    with pytest.raises(ZeroDivisionError):
        rt.run(gated(gate, lambda x: x // 0, str))
    gate.open()
    assert rt.submit(str, 1).result(TIMEOUT_S) == "1"
