"""Signals while state is being changed: their handlers wait, and then do what the program wants them to do."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

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


def test_ctrl_c_stops_the_pickling_of_an_argument_in_the_callers_thread() -> None:
    done = run("""
        import threading, time
        from headrace import testing
        from headrace.graph import Graph
        pickled = []
        class Slow:
            def __reduce__(self):
                pickled.append(threading.current_thread() is threading.main_thread())
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(10.0)
                return int, ()
        def graph(*args):
            calls = [(testing.identity, (arg,), None, ()) for arg in args]
            numbers = list(range(len(args)))
            return Graph(keys=numbers, calls=calls, deps=[()] * len(args), families=["f"] * len(args), outputs=numbers)
        with Runtime(lane="processes", num_workers=2, check=True) as rt:
            rt.run(graph(*range(20)))
            testing.wait_until(lambda: [worker["up"] for worker in rt.status()["workers"]] == [True, True])
            future = rt.submit(time.sleep, 0.2)
            begin_s = time.monotonic()
            try:
                rt.run(graph(Slow(), Slow(), Slow(), Slow()))
            except KeyboardInterrupt:
                print("stopped", time.monotonic() - begin_s < 0.5)
            print("pickled", pickled)
            print(rt.run(graph(1, 2, [3])), future.result(), rt.status()["jobs"])
        print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """)
    lines = ["stopped True", "pickled [True]", "[1, 2, [3]] None []", "True"]
    assert done.stdout.splitlines() == lines, done.stdout + done.stderr


SHIELDED = """
    import contextlib
    from headrace.shell.interrupts import InterruptShield
    shield, story = InterruptShield(), []
    def press(number):
        os.kill(os.getpid(), number)
        story.append("went on")
    def handler(number, frame):
        story.append("heard")
    signal.signal(signal.SIGALRM, handler)
    try:
        {body}
    except KeyboardInterrupt:
        story.append("stopped")
    print(*story, sep=", ")
"""


@pytest.mark.parametrize(
    ("body", "story"),
    [
        ("with shield: shield.call_foreign(press, signal.SIGINT)", "stopped"),
        ("with shield: press(signal.SIGINT); shield.call_foreign(press, signal.SIGINT)", "went on, stopped"),
        ("with shield, shield: shield.call_foreign(press, signal.SIGINT)", "went on, stopped"),
        ("with shield: shield.call_foreign(press, signal.SIGALRM); story.append('last')", "went on, last, heard"),
        ("with shield: shield.call_foreign(lambda: shield.__enter__() or press(signal.SIGINT) or "
         "shield.__exit__(None, None, None)); story.append('last')", "went on, last, stopped"),
        ("with shield: shield.call_foreign(int); press(signal.SIGINT)", "went on, stopped"),
        ("shield.call_foreign(press, signal.SIGINT)", "stopped"),
    ],
)  # fmt: skip
def test_foreign_code_in_the_shield_is_stopped_by_ctrl_c_alone(body: str, story: str) -> None:
    done = run(textwrap.dedent(SHIELDED).format(body=body))
    assert done.stdout.splitlines() == [story], done.stderr


STORM = """
    import random
    from concurrent.futures import CancelledError, wait
    from headrace import testing
    from headrace.graph import Graph

    class Alarm(Exception):
        pass
    def handler(number, frame):
        raise Alarm("too late")
    signal.signal(signal.SIGALRM, handler)
    dice = random.Random(1)
    rt = Runtime(lane="{lane}", num_workers=2, check=True)
    graph = Graph(list(range(20)), [(testing.inc, (1,), None, ())] * 20, [()] * 20, ["inc"] * 20, list(range(20)))
    futures, raised = [], 0

    def work():
        futures.append(rt.submit(testing.inc, len(futures)))
        futures.append(rt.submit(testing.inc, futures[-1]))
        futures.append(rt.submit(testing.inc, futures[-1]))
        futures[dice.randrange(len(futures))].cancel()
        assert rt.run(graph) == [2] * 20
        try:
            futures[-1].result()
        except CancelledError:
            pass

    while raised < 400:
        try:
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-5, 4e-3))
            for _ in range(100):  # for ever, but that an alarm is lost if it rings while a finalizer runs
                work()
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        except Alarm:
            raised += 1
    rt.run(graph)  # puts back what an alarm has kept from being put back
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    done, open_ones = wait(futures, timeout=20)
    assert not open_ones, open_ones
    for number, future in enumerate(futures):
        assert future.cancelled() or future.exception() is None, future.exception()
    del futures[:], done, future
    assert rt.submit(testing.inc, 1).result() == 2
    testing.wait_until(lambda: not rt.status()["jobs"], rt.status())
    testing.wait_until(lambda: not rt._engine.is_busy, "the end of what an alarm kept from getting into the list")
    assert not rt._engine._shield._depth
    rt.shutdown()
    print("calm")
"""


@pytest.mark.parametrize("lane", ["inline", "threads", "processes"])
def test_alarms_at_any_moment_leave_nothing_half_done(lane: str) -> None:
    done = run(textwrap.dedent(STORM).format(lane=lane))
    assert done.stdout.splitlines() == ["calm"], done.stderr


def test_a_task_may_set_a_handler_and_put_back_what_it_found() -> None:
    done = run("""
        from headrace.graph import Graph
        heard = []
        def outer(number, frame):
            heard.append("outer")
        def inner(number, frame):
            heard.append("inner")
        signal.signal(signal.SIGUSR1, outer)
        rt = Runtime(lane="inline")
        def graph(fn):
            return Graph(keys=[0], calls=[(fn, (), None, ())], deps=[()], families=["f"], outputs=[0])
        def task():
            found = signal.signal(signal.SIGUSR1, inner)
            rt.run(graph(lambda: signal.raise_signal(signal.SIGUSR1)))
            signal.signal(signal.SIGUSR1, found)
            signal.raise_signal(signal.SIGUSR1)
        rt.run(graph(task))
        signal.raise_signal(signal.SIGUSR1)
        rt.shutdown()
        print(heard, signal.getsignal(signal.SIGUSR1) is outer)
    """)
    assert done.stdout.splitlines() == ["['inner', 'outer', 'outer'] True"], done.stderr
