"""What the status says of a runtime, in its process and from outside, also when something is wrong with it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from headrace import testing
from headrace.cli import _describe, main
from headrace.graph import Graph
from headrace.observe.status import read_status
from headrace.runtime import Runtime


def graph_of(*calls: tuple[Any, ...]) -> Graph:
    """Calls (function, arguments...) that do not depend on each other, and all of whose values are wanted."""
    count = len(calls)
    made = [(fn, tuple(args), None, ()) for fn, *args in calls]
    return Graph(list(range(count)), made, [()] * count, ["f"] * count, list(range(count)))


def test_a_status_that_cannot_be_told_is_said_and_the_next_one_is_told(capsys: Any, tmp_path: Path) -> None:
    def mine() -> list[dict[str, Any]]:
        return [state for state in read_status() if state["pid"] == os.getpid()]

    class Nameless:
        def __str__(self) -> str:
            raise ValueError("no name")

    with Runtime(lane="threads", num_workers=1) as rt:
        graph = Graph([Nameless()], [(testing.hold, (tmp_path,), None, ())], [()], ["f"], [0])
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(rt.run, graph)
            testing.wait_until(lambda: any("error" in state for state in mine()), "an error")
            main(["status", str(os.getpid())])
            assert "ValueError: no name" in capsys.readouterr().out
            testing.let_go(tmp_path)
            running.result()
        rt.run(graph_of((testing.inc, 1)))
        testing.wait_until(lambda: any("jobs" in state for state in mine()), "the status")


def test_published_status_is_found_behind_descriptors_that_come_and_go() -> None:
    below = os.open(os.devnull, os.O_RDONLY)
    with Runtime(lane="inline", num_workers=1) as rt:
        rt.run(graph_of((testing.inc, 1)))
        os.close(below)  # looking at the descriptors takes this number now, which is gone when it is looked at
        testing.wait_until(lambda: any(state["pid"] == os.getpid() for state in read_status()), "the status")


def test_status_describes_workers_and_the_store() -> None:
    with Runtime(lane="processes", num_workers=1) as rt:
        handles = rt.run(graph_of(*((testing.make_bytes, 1 << 20, n) for n in range(2))), keep=True)
        status = rt.status()
        (worker,) = status["workers"]
        assert worker["up"]
        assert Path(f"/proc/{worker['pid']}").exists()
        assert [handle.result()[0] for handle in handles] == [0, 1]
        assert set(status["store"]) == {"published_bytes", "values", "segments"}
        assert any(line.startswith(f"  worker 1 (process {worker['pid']}, ") for line in _describe(status))


def test_status_names_each_jobs_lane_and_counts_what_waits_behind_what_a_worker_runs(tmp_path: Path) -> None:
    with Runtime(lane="threads", num_workers=1) as rt, ThreadPoolExecutor(1) as pool:
        rt.run(graph_of(*((testing.inc, n) for n in range(20))), lane="processes")  # so that others are sent ahead
        graph = graph_of((testing.hold, tmp_path), *((testing.inc, n) for n in range(3)))
        running = pool.submit(rt.run, graph, lane="processes")
        testing.wait_for_start(tmp_path)
        status = rt.status()
        testing.let_go(tmp_path)
        running.result()
    (worker,) = status["workers"]
    assert (worker["runs"], worker["queued"], status["tasks"]["away"]) == ("0", 3, 4)
    header, job, line, *_ = _describe(status)
    assert header == f"process {os.getpid()}: 1 at once; tasks: 4 away"
    assert job.endswith(": lane processes, 4 results to come, 4 tasks")
    assert " runs 0, 3 queued, holds " in line


def test_status_says_what_runs_and_what_waits(tmp_path: Path) -> None:
    with Runtime(lane="threads", num_workers=1) as rt:
        first = rt.submit(testing.hold, tmp_path)
        second = rt.submit(testing.inc, first)
        testing.wait_for_start(tmp_path)
        status = rt.status()
        assert any(name.startswith("hold-") for slot in status["slots"] for name in slot["runs"])
        assert [row["for"].startswith("hold-") for row in status["waiting"]] == [True]
        testing.let_go(tmp_path)
        with pytest.raises(TypeError):
            second.result()
