"""Programs of their own, from beginning to end: Ctrl-C, a fork, an exit with work to do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from headrace.config import LANES

SCRIPT_HEAD = """
import os, sys, threading, time
from headrace import testing
from headrace.runtime import Runtime, default
"""


def run_script(body: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Runs an unguarded script in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT_HEAD + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ,
        check=False,
    )


@pytest.mark.parametrize("lane", LANES)
def test_ctrl_c_stops_at_once_and_leaves_the_runtime_usable(lane: str) -> None:
    done = run_script(f"""
        import signal
        from headrace.graph import Graph
        rt = Runtime(lane={lane!r}, num_workers=2)
        def graph(fn, *args, n=6):
            return Graph(keys=list(range(n)), calls=[(fn, args, None, ())] * n, deps=[()] * n,
                         families=["f"] * n, outputs=list(range(n)))
        rt.run(graph(testing.inc, 1))
        pressed = []
        def press():
            pressed.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(0.5, press).start()
        try:
            rt.run(graph(time.sleep, 30))
        except KeyboardInterrupt:
            print("stopped", time.perf_counter() - pressed[0] < 0.5)
        print(rt.run(graph(testing.inc, 1)))
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """)
    assert done.stdout.splitlines() == ["stopped True", "[2, 2, 2, 2, 2, 2]", "True"], done.stderr


def test_the_default_runtime_survives_a_fork() -> None:
    done = run_script("""
        rt = default()
        print(rt.submit(testing.inc, 1).result())
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            assert default() is not rt
            try:
                rt.submit(testing.inc, 1)
            except RuntimeError as error:
                print("fork" in str(error))
            print(default().submit(testing.inc, 2).result())
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)
        print(rt.submit(testing.inc, 3).result())
    """)
    assert done.stdout.split() == ["2", "True", "3", "4"], done.stderr


def test_futures_pending_at_exit_are_finished() -> None:
    done = run_script("""
        ended = threading.Event()
        threading._register_atexit(ended.set)
        default().submit(lambda: print("late", ended.wait(60)))
    """)
    assert done.stdout.split() == ["late", "True"], done.stderr
