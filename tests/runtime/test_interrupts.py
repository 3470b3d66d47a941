"""Ctrl-C while state is being changed: it waits, and then does what the program wants it to do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

SCRIPT_HEAD = """
import os, signal
from headrace.runtime import Runtime

class Pressing:
    '''A task that presses Ctrl-C while it is being submitted.'''

    @property
    def __code__(self):
        os.kill(os.getpid(), signal.SIGINT)
        raise AttributeError

    def __call__(self):
        return "ran"
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a fresh interpreter, where signals do no harm."""
    return subprocess.run(
        [sys.executable, "-c", SCRIPT_HEAD + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=60.0,
        env=os.environ,
        check=False,
    )


def test_ctrl_c_during_submit_leaves_no_future_behind() -> None:
    done = run("""
        rt = Runtime(num_workers=1)
        try:
            rt.submit(Pressing())
        except KeyboardInterrupt:
            print("stopped")
        rt.shutdown()
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """)
    assert done.stdout.splitlines() == ["stopped", "True"], done.stderr


def test_a_handler_of_the_user_decides_what_ctrl_c_does() -> None:
    done = run("""
        heard = []
        def handler(number, frame):
            heard.append(number)
        signal.signal(signal.SIGINT, handler)
        with Runtime(num_workers=1) as rt:
            print(rt.submit(Pressing()).result(), heard)
        print(signal.getsignal(signal.SIGINT) is handler)
    """)
    assert done.stdout.splitlines() == ["ran [2]", "True"], done.stderr


def test_a_signal_handler_that_raises_reaches_the_caller_and_leaves_the_runtime_usable() -> None:
    done = run("""
        from headrace.graph import Graph
        class Alarm(BaseException):
            pass
        def handler(number, frame):
            raise Alarm("too late")
        signal.signal(signal.SIGALRM, handler)
        class Ringing:
            '''The name of a family, at which the decision core looks while it takes in a graph.'''
            def __hash__(self):
                os.kill(os.getpid(), signal.SIGALRM)
                return 1
        def graph(family):
            return Graph(keys=[0], calls=[(max, (1, 2), None, ())], deps=[()], families=[family], outputs=[0])
        with Runtime(num_workers=1, check=True) as rt:
            try:
                rt.run(graph(Ringing()))
            except Alarm as error:
                print(error)
            print(rt.run(graph("f")), rt.submit(max, 3, 4).result())
    """)
    assert done.stdout.splitlines() == ["too late", "[2] 4"], done.stderr
