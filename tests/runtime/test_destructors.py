"""Destructors that use the runtime: the garbage collector calls them at any moment, also in the midst of a decision."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest

from headrace import testing
from headrace.errors import NoThreadError
from headrace.graph import Graph
from headrace.runtime import Runtime

HEAD = """
import faulthandler, gc
faulthandler.dump_traceback_later(40, exit=True)
from headrace.graph import Graph
from headrace.runtime import Runtime, default
died = []

class Circle:
    '''What only the garbage collector can free: it comes often, and wherever memory is asked for.'''
    def __init__(self):
        self.me = self
    def __del__(self):
        died.append(act())

def graph(fn, *args, count=1):
    return Graph(list(range(count)), [(fn, args, None, ())] * count, [()] * count, ["f"] * count, [0])

gc.set_threshold(40, 2, 2)
"""


def run(body: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(body)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_destructor_may_submit_at_any_moment() -> None:
    body = """
        rt = Runtime(lane="threads", num_workers=1)
        def act():
            return rt.submit(abs, -1)
        for n in range(2000):
            Circle()
            assert rt.submit(abs, -n).result() == n
        gc.set_threshold(700, 10, 10)
        print(len(died) > 100, {future.result() for future in died})
        gc.collect()
        rt.shutdown()
    """
    assert run(body) == "True {1}"


@pytest.mark.parametrize("lane", ["auto", "threads"])
def test_a_destructor_may_run_graphs_at_any_moment_also_at_the_interpreter_s_end(lane: str) -> None:
    body = f"""
        def act():
            return default().run(graph(abs, -1), lane="{lane}")[0]
        for n in range(200):
            default().run(graph(Circle, count=50), lane="{lane}")
        gc.set_threshold(700, 10, 10)
        print(len(died) > 100, set(died))
        last = Circle()
    """
    assert run(body) == "True {1}"


def test_a_destructor_that_waits_where_it_cannot_is_told_so() -> None:
    with Runtime(lane="threads", num_workers=1) as rt:
        with rt._engine._lock, pytest.raises(RuntimeError, match="destructor"):
            rt.submit(testing.inc, 1).result()
        assert rt.submit(testing.inc, 1).result() == 2


def test_a_task_cannot_wait_for_the_end_of_its_own_runtime() -> None:
    with Runtime(lane="threads", num_workers=1) as rt:
        with pytest.raises(RuntimeError, match="wait=False"):
            rt.submit(rt.shutdown).result(timeout=20)
        assert rt.submit(testing.inc, 1).result() == 2
        rt.submit(rt.shutdown, wait=False).result(timeout=20)


def test_what_needs_no_thread_runs_when_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    graph = Graph(["a", "b"], [(testing.inc, (1,), None, ())] * 2, [()] * 2, ["f"] * 2, [0, 1])
    with Runtime(lane="inline") as rt, monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert rt.run(graph) == [2, 2]


@pytest.mark.parametrize("lane", ["auto", "threads"])
@pytest.mark.parametrize("left", [0, 1])
def test_what_needs_a_thread_says_so_when_none_is_left(lane: str, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    started: list[str] = []

    def start_few(thread: threading.Thread) -> None:
        if thread.name.removeprefix("headrace-").isdigit():
            started.append(thread.name)
            if len(started) > left:
                raise RuntimeError("can't start new thread")
        start(thread)

    graph = Graph(list("abcd"), [(testing.slow, (1, 0.05), None, ())] * 4, [()] * 4, ["f"] * 4, [0, 1, 2, 3])
    with Runtime(lane=lane, num_workers=2) as rt:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start_few)
            with pytest.raises(NoThreadError, match="ulimit -u"):
                rt.run(graph)
        assert rt.run(graph) == [1] * 4
