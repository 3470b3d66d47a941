"""A module that computes while it is imported, with functions of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import functools
import threading
import time
from headrace.graph import Graph
from headrace.runtime import Runtime

def work(base, n):
    end = time.perf_counter() + 0.02
    while time.perf_counter() < end:
        pass
    return base + n

def numbers():
    yield from range(5)

def total(items):
    return sum(items)

with Runtime(lane="{lane}", num_workers=2) as runtime:
    futures = [runtime.submit(work, 1, n) for n in range(40)]
    futures += [runtime.submit(functools.partial(work, 1), n) for n in range(3)]
    futures.append(runtime.submit(total, runtime.submit(numbers)))
    calls = [(work, (2, n), None, ()) for n in range(60)]
    graph = Graph(list(range(60)), calls, [()] * 60, ["work"] * 60, list(range(60)))
    print(sum(runtime.run(graph)), sum(future.result() for future in futures))
"""


@pytest.mark.parametrize("lane", ["auto", "threads", "processes"])
def test_a_module_may_compute_while_it_is_imported(lane: str, tmp_path: Path) -> None:
    (tmp_path / "unfinished.py").write_text(MODULE.format(lane=lane))
    done = subprocess.run(
        [sys.executable, "-c", "import unfinished; print('imported')"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{60 * 2 + 1770} {40 + 780 + 3 + 3 + 10}\nimported\n", "")
