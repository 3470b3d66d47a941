"""Shared by the tests of the Dask adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("dask")

import dask

from headrace.config import LANES
from headrace.graph import Graph
from headrace.task import run_call


def run_from_left_to_right(graph: Graph) -> list[Any]:
    """Runs a graph by its definition: every dependency has a lower index."""
    values: dict[int, Any] = {}
    for index, call in enumerate(graph.calls):
        assert all(dep < index for dep in graph.deps[index])
        if call is None:
            values[index] = graph.literals[index]
        else:
            named = {d for _, dep in call[3] for d in ((dep,) if isinstance(dep, int) else dep)}
            assert named == set(graph.deps[index])
            assert len(graph.deps[index]) == len(named)
            values[index] = run_call(call, values)
    return [values[index] for index in graph.outputs]


@pytest.fixture(scope="session")
def run_graph() -> Callable[[Graph], list[Any]]:
    return run_from_left_to_right


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> Iterator[str]:
    """Has dask use Headrace, in one lane after the other."""
    import headrace_dask  # noqa: F401 - registers the name

    with dask.config.set({"scheduler": "headrace", "headrace.lane": request.param}):
        yield request.param
