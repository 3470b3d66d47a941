"""The fixture that looks for leftovers, tried on tests that leave each kind of thing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = (Path(__file__).parent / "conftest.py").read_text().replace("GONE_WITHIN_S = 5.0", "GONE_WITHIN_S = 0.3")

LEAKS = """
import atexit, os, subprocess, tempfile, threading

kept = []

def test_child():
    child = subprocess.Popen(["sleep", "20"])
    atexit.register(child.wait)
    atexit.register(child.kill)

def test_orphan():
    orphan = int(subprocess.check_output("sleep 20 >/dev/null & echo $!", shell=True))
    atexit.register(os.kill, orphan, 9)

def test_thread():
    threading.Thread(target=threading.Event().wait, args=(20,), daemon=True).start()

def test_descriptor():
    kept.append(os.memfd_create("left"))

def test_shared_memory():
    path = f"/dev/shm/left-{os.getpid()}"
    open(path, "w").close()
    atexit.register(os.unlink, path)

def test_temporary_file():
    os.close(tempfile.mkstemp()[0])

def test_goes_away_by_itself():
    threading.Thread(target=threading.Event().wait, args=(0.1,), daemon=True).start()
    cycle = [os.fdopen(os.memfd_create("collected"))]
    cycle.append(cycle)
"""

SHARED = """
import os, pytest

kept = []

@pytest.mark.shares_runtime
def test_opens():
    kept.append(os.memfd_create("kept"))

def test_finds_it_open():
    assert kept

@pytest.mark.shares_runtime
def test_closes():
    os.close(kept.pop()) if CLOSES else None
"""


def run(pytester: pytest.Pytester, **modules: str) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nmarkers = shares_runtime\n")
    pytester.makepyfile(**modules)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider")


def test_names_what_each_test_left_behind(pytester: pytest.Pytester) -> None:
    result = run(pytester, test_leaks=LEAKS)
    result.assert_outcomes(passed=7, errors=6)
    told = [
        after
        for before, after in zip(result.outlines, result.outlines[1:], strict=False)
        if before.startswith("the test left")
    ]
    kinds = ["process: child", "process: orphan", "thread: ", "descriptor: ", "file: /dev/shm/left-", "file: "]
    assert [line.startswith(kind) for line, kind in zip(told, kinds, strict=True)] == [True] * 6, told


def test_looks_at_a_shared_runtime_after_its_module(pytester: pytest.Pytester) -> None:
    result = run(pytester, test_tidy=f"CLOSES = True\n{SHARED}", test_untidy=f"CLOSES = False\n{SHARED}")
    result.assert_outcomes(passed=6, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_closes*", "the module left behind:", "descriptor: *kept*"])
