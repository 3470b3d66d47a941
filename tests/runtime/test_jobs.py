"""The books of open jobs."""

from __future__ import annotations

import math
from typing import Any

from headrace import testing
from headrace.graph import Graph
from headrace.shell.jobs import Job, Jobs


def graph_of(count: int, fn: Any) -> Graph:
    return Graph(list(range(count)), [(fn, (), None, ())] * count, [()] * count, ["f"] * count, [0])


def nowhere(task: int) -> Any:
    raise KeyError(task)


def test_modules_are_those_of_every_open_job() -> None:
    jobs = Jobs("auto", nowhere)
    for fn in (testing.inc, math.sqrt, len):
        jobs.add(Job.of_graph(graph_of(3, fn), "auto", None, nowhere))
    assert jobs.modules_in_use() == ("headrace.testing", "math")


def test_modules_of_a_large_job_are_told_by_a_sample() -> None:
    looks = []

    class Function:
        @property
        def __module__(self) -> str:
            looks.append(1)
            return "headrace.testing"

    jobs = Jobs("auto", nowhere)
    jobs.add(Job.of_graph(graph_of(50_000, Function()), "auto", None, nowhere))
    assert jobs.modules_in_use() == ("headrace.testing",)
    assert len(looks) <= 1000
