"""A Runtime that nobody shuts down: one that is not held any more, or is still there when the interpreter ends.

That nothing is left of it, each test is asked by the fixture that looks for leftovers.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import testing
from headrace.runtime import Runtime


def run(script: str) -> str:
    return python("-c", textwrap.dedent(script))


def python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("lane", ["auto", "inline", "threads", "processes"])
def test_it_ends(lane: str) -> None:
    assert Runtime(lane=lane, num_workers=2).submit(testing.inc, 1).result() == 2


def test_what_was_submitted_is_finished() -> None:
    gate = threading.Event()
    runtime = Runtime(lane="threads", num_workers=1)
    first = runtime.submit(gate.wait, 60)
    others = [runtime.submit(testing.inc, n) for n in range(10)]
    last = runtime.submit(sum, others)
    del runtime
    gc.collect()
    assert not last.done()
    gate.set()
    assert (first.result(timeout=60), last.result(timeout=60)) == (True, 55)


def test_its_streams_are_read_to_their_end() -> None:
    def counting() -> Iterator[bytes]:
        for n in range(200):
            yield bytes([n]) * 100_000

    stream: Any = Runtime(lane="threads", num_workers=1, stream_buffer_bytes=300_000).submit(counting).result()
    gc.collect()
    assert [chunk[0] for chunk in stream] == list(range(200))


def test_a_stream_that_is_dropped_too_lets_it_end() -> None:
    closed = threading.Event()

    def counting() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(100_000)
        finally:
            closed.set()

    stream: Any = Runtime(lane="threads", num_workers=1, stream_buffer_bytes=300_000).submit(counting).result()
    assert len(next(iter(stream))) == 100_000
    del stream
    gc.collect()
    assert closed.wait(60)


def test_its_pipeline_keeps_it() -> None:
    with Runtime(lane="threads").stream(testing.inc, testing.inc) as pipeline:
        gc.collect()
        assert [pipeline.submit(n).result(timeout=60) for n in range(5)] == [2, 3, 4, 5, 6]


def test_the_garbage_collector_may_drop_it_while_a_thread_is_being_started() -> None:
    script = """
        import faulthandler, gc, threading
        faulthandler.dump_traceback_later(50, exit=True)
        from headrace.runtime import Runtime
        class Circle:
            def __init__(self, runtime):
                self.me, self.runtime = self, runtime
        gc.set_threshold(10, 2, 2)
        futures = []
        for n in range(100):
            runtime = Runtime(lane="threads", num_workers=1)
            futures.append(runtime.submit(abs, -n))
            Circle(runtime)
            del runtime
            for _ in range(3):
                thread = threading.Thread(target=list, args=([None] * 20,))
                thread.start()
                thread.join()
        print([future.result() for future in futures] == list(range(100)))
    """
    assert run(script) == "True\n"


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("lane", ["auto", "threads", "processes"])
def test_the_interpreter_s_end_waits_for_what_was_submitted(lane: str, held: bool) -> None:
    script = f"""
        import time
        from headrace.runtime import Runtime
        def work(n):
            time.sleep(0.1)
            return n
        runtime = Runtime(lane="{lane}", num_workers=2)
        sums = [runtime.submit(work, n) for n in range(6)]
        runtime.submit(sum, sums).add_done_callback(lambda future: print("sum", future.result()))
        if not {held}:
            del runtime
        print("the program has ended")
    """
    assert run(script) == "the program has ended\nsum 15\n"


@pytest.mark.parametrize("lane", ["threads", "processes"])
def test_what_was_submitted_is_finished_before_the_handlers_of_atexit_are_called(lane: str) -> None:
    script = f"""
        import atexit, time
        from headrace.runtime import Runtime
        runtime = Runtime(lane="{lane}", num_workers=1)
        atexit.register(print, "closed")
        for n in range(3):
            runtime.submit(time.sleep, 0.1).add_done_callback(lambda future: print("done"))
    """
    assert run(script) == "done\ndone\ndone\nclosed\n"


def test_ctrl_c_at_the_interpreter_s_end_stops_what_was_submitted() -> None:
    script = """
        import os, signal, sys, threading, time
        from headrace.runtime import Runtime
        def where(frame):
            return {frame.f_code.co_name} | where(frame.f_back) if frame else set()
        def interrupt():
            while not {"finish", "wait"} <= where(sys._current_frames()[threading.main_thread().ident]):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(600)
        Runtime(lane="threads", num_workers=1).submit(interrupt)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=60, check=False)
    assert b"KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize("lane", ["threads", "processes"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_finishes_what_it_submitted(method: str, lane: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
            import multiprocessing, time
            from headrace.runtime import Runtime

            class Number(int):
                pass

            def work(n):
                time.sleep(0.1)
                return Number(n + 1)

            def child():
                made = runtime()
                for n in range(3):
                    future = made.submit(work, Number(n))
                    future.add_done_callback(lambda future: print(type(future.result()) is Number, flush=True))

            def runtime():
                return Runtime(lane="{lane}", num_workers=1)

            if __name__ == "__main__":
                assert runtime().submit(work, Number(1)).result() == 2
                process = multiprocessing.get_context("{method}").Process(target=child)
                process.start()
                process.join()
        """)
    )
    assert python(str(program)) == "True\n" * 3


def test_a_runtime_made_after_the_end_of_the_program_ends_too() -> None:
    script = """
        import atexit
        @atexit.register  # called after what a Runtime registers
        def late():
            print(default().submit(abs, -3).result(), Runtime(lane="threads").submit(abs, -4).result())
        from headrace.runtime import Runtime, default
        print(default().submit(abs, -2).result())
    """
    assert run(script) == "2\n3 4\n"


def test_a_forked_child_may_shut_down_what_it_has_inherited() -> None:
    script = """
        import os, threading
        from headrace.runtime import Runtime
        gate = threading.Event()
        with Runtime(lane="threads", num_workers=1) as runtime:
            future = runtime.submit(gate.wait, 60)
            pid = os.fork()
            if pid:
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                gate.set()
        if not pid:
            os._exit(0)
        print(future.result())
    """
    assert run(script) == "0\nTrue\n"
