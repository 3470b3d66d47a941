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
