"""Context variables: a task sees those of whoever wanted it, and what it sets is seen by nobody else."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from typing import Any

import pytest

from headrace.graph import Graph
from headrace.runtime import Runtime

pytestmark = pytest.mark.shares_runtime

VARIABLE = contextvars.ContextVar("VARIABLE", default="nobody")


def set_to(value: str) -> str:
    """What it was before."""
    before = VARIABLE.get()
    VARIABLE.set(value)
    return before


def graph_of(fn: Any, *args: Any) -> Graph:
    return Graph([fn.__name__], [(fn, args, None, ())], [()], [fn.__name__], [0])


@pytest.fixture(scope="module", params=["auto", "inline", "threads"])
def rt(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(lane=request.param, num_workers=1, check=True) as made:
        yield made


def test_what_a_task_sets_is_not_seen_outside(rt: Runtime) -> None:
    for _ in range(3):  # from the second time on, lane auto runs it at once
        assert rt.run(graph_of(set_to, "task")) == ["nobody"]
        assert VARIABLE.get() == "nobody"


def test_a_task_sees_what_its_caller_has_set(rt: Runtime) -> None:
    token = VARIABLE.set("caller")
    try:
        for _ in range(3):
            assert rt.run(graph_of(set_to, "task")) == ["caller"]
            assert VARIABLE.get() == "caller"
    finally:
        VARIABLE.reset(token)


def test_a_task_inside_a_task(rt: Runtime) -> None:
    def outer(value: str) -> tuple[str, str, str]:
        before = set_to(value)
        (seen,) = rt.run(graph_of(set_to, "inner"))
        return before, seen, VARIABLE.get()

    for _ in range(3):
        assert rt.run(graph_of(outer, "outer")) == [("nobody", "outer", "outer")]
        assert VARIABLE.get() == "nobody"


def test_what_runs_without_help_keeps_to_itself(rt: Runtime) -> None:
    assert rt._engine._run_alone(graph_of(set_to, "task"), keep=False) == ["nobody"]
    assert VARIABLE.get() == "nobody"
