"""Headrace works from wherever Python runs: an unguarded script, standard input, the REPL, a notebook kernel, a daemon,
a forked web worker. Every one of these calls functions that only exist in ``__main__``, in worker processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from headrace import testing

PROGRAM = textwrap.dedent("""
    import os
    from headrace import Runtime

    OFFSET = 5

    class Point:
        def __init__(self, x):
            self.x = x

    def shift(point):
        return Point(point.x + OFFSET), os.getpid()

    runtime = Runtime(lane="processes", num_workers=2)
    results = list(runtime.map(shift, [Point(n) for n in range(4)]))
    runtime.shutdown()
    assert all(type(point) is Point for point, _ in results)
    assert os.getpid() not in {pid for _, pid in results}
    print("sum", sum(point.x for point, _ in results), flush=True)
""")
EXPECTED = "sum 26"


def run(arguments: list[str], text: str | None = None, timeout_s: float = 60.0) -> str:
    done = subprocess.run(arguments, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_unguarded_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    # Once: a worker that imported the script again would print it again.
    assert run([sys.executable, str(script)]).splitlines() == [EXPECTED]


def test_module_run_with_m(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    assert run([sys.executable, "-m", "program"]).splitlines() == [EXPECTED]


def test_command_line() -> None:
    assert run([sys.executable, "-c", PROGRAM]).splitlines() == [EXPECTED]


def test_where_to_leave_out_an_encoding_is_an_error() -> None:
    strict = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
    assert run([sys.executable, *strict, "-c", PROGRAM]).splitlines() == [EXPECTED]


def test_standard_input() -> None:
    assert run([sys.executable, "-"], PROGRAM).splitlines() == [EXPECTED]


def test_interactive_session() -> None:
    session = PROGRAM.replace("\n\n    def", "\n\ndef") + "\n"
    assert EXPECTED in run([sys.executable, "-i", "-q"], session + "\nexit()\n")


def test_functions_of_a_script_next_to_importable_ones(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
            import helper
            from headrace import Runtime

            with Runtime(lane="processes", num_workers=1) as runtime:
                print(runtime.submit(lambda x: helper.double(x) + 1, runtime.submit(helper.double, 5)).result())
        """)
    )
    assert run([sys.executable, str(tmp_path / "script.py")]).split() == ["21"]


NOTEBOOK = """
import sys
from jupyter_client.manager import start_new_kernel

manager, client = start_new_kernel(kernel_name="python3", startup_timeout=60)
try:
    for cell in sys.argv[1:]:
        show = lambda message: print(message["content"].get("text", ""), end="")
        reply = client.execute_interactive(cell, timeout=60, output_hook=show)
        assert reply["content"]["status"] == "ok", reply
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""


def test_notebook_kernel() -> None:
    cells = [PROGRAM, "print('again', sum(p.x for p, _ in results))"]
    assert run([sys.executable, "-c", NOTEBOOK, *cells]).splitlines() == [EXPECTED, "again 26"]


def test_daemon(tmp_path: Path) -> None:
    """Double fork, new session, standard streams closed: as an old-fashioned daemon starts."""
    out = tmp_path / "out"
    script = textwrap.dedent(f"""
        import os, sys
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
        for fd in (0, 1, 2):
            os.close(fd)
        text = open({str(out)!r} + ".part", "w")
        os.dup2(text.fileno(), 1)
        sys.stdout = open(1, "w", closefd=False)
        try:
            exec({PROGRAM!r})
        finally:
            sys.stdout.flush()
            os.rename({str(out)!r} + ".part", {str(out)!r})
    """)
    run([sys.executable, "-c", script])
    testing.wait_until(out.exists, "the daemon's output")
    assert out.read_text().splitlines() == [EXPECTED]


def test_forked_web_worker() -> None:
    """A pre-fork server: the master has used Headrace, threads and workers included, before it forks its workers."""
    script = textwrap.dedent("""
        import os, sys
        from headrace.runtime import default

        def serve(request):
            return request * 2

        os.environ["HEADRACE_LANE"] = "processes"
        assert default().submit(serve, 1).result() == 2
        children = []
        for number in range(2):
            pid = os.fork()
            if pid == 0:
                try:
                    assert default().submit(serve, number).result() == number * 2
                    from headrace.runtime import close_default
                    close_default()
                    os._exit(0)
                except BaseException as error:
                    print("child", repr(error), file=sys.stderr, flush=True)
                    os._exit(1)
            children.append(pid)
        print([os.waitpid(pid, 0)[1] for pid in children], default().submit(serve, 21).result(), flush=True)
    """)
    assert run([sys.executable, "-c", script]).splitlines() == ["[0, 0] 42"]


def test_inside_an_event_loop() -> None:
    script = textwrap.dedent("""
        import asyncio
        from headrace import Runtime

        def double(x):
            return 2 * x

        async def main():
            loop = asyncio.get_running_loop()
            with Runtime(lane="processes", num_workers=1) as runtime:
                return await asyncio.gather(*[loop.run_in_executor(runtime, double, n) for n in range(5)])

        print(asyncio.run(main()))
    """)
    assert run([sys.executable, "-c", script]).splitlines() == ["[0, 2, 4, 6, 8]"]


def test_owner_killed_leaves_no_worker(tmp_path: Path) -> None:
    """SIGKILL of the owner while its workers hold the GIL inside C code."""
    script = textwrap.dedent("""
        import os, signal, sys
        from headrace import Runtime

        def stuck():
            os.write(1, f"{os.getpid()}\\n".encode())  # whole, also with PYTHONUNBUFFERED
            return sum(range(10**12))

        runtime = Runtime(lane="processes", num_workers=2)
        for _ in range(2):
            runtime.submit(stuck)
        sys.stdin.read()
    """)
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    try:
        pids = [int(owner.stdout.readline()) for _ in range(2)]
        owner.kill()
        owner.wait()
        testing.wait_until(lambda: not any(runs(pid) for pid in pids), "the end of the workers", 1.0)
    finally:
        owner.kill()
        owner.wait()
        owner.stdin.close()
        owner.stdout.close()


def runs(pid: int) -> bool:
    """Whether a process is there and not a zombie: reaping an orphan is up to init, and may take long."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
