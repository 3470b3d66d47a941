"""Workers import what tasks need before they are given any: nobody waits for an import that others can do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

QUICK_TO_IMPORT = """
import os
import time

def spin(n):
    end = time.thread_time() + 0.005
    while time.thread_time() < end:
        pass
    return os.getpid()
"""

SLOW_TO_IMPORT = """
import os
import sys
import time

if "headrace.lanes.processes.worker" in sys.modules and os.getpid() != int(os.environ["OWNER"]):
    open("importing", "w").close()
    while not os.path.exists("gate"):
        time.sleep(0.01)

from other import spin as spin_there

def spin(n):
    return spin_there(n)
"""

PROGRAM = """
import os
import time

os.environ["OWNER"] = str(os.getpid())
import other
import slow_to_import
from headrace.graph import Graph
from headrace.runtime import Runtime

def pids(runtime, fn, name):
    calls = [(fn, (n,), None, ()) for n in range(100)]
    return set(runtime.run(Graph(list(range(100)), calls, [()] * 100, [name] * 100, list(range(100)))))

def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end

with Runtime(lane="auto", num_workers=2) as runtime:
    until(lambda: len(pids(runtime, other.spin, "other")) == 2)
    while_importing = []
    until(lambda: while_importing.append(pids(runtime, slow_to_import.spin, "slow")) or os.path.exists("importing"))
    for _ in range(3):
        while_importing.append(pids(runtime, slow_to_import.spin, "slow"))
    assert all(found == {os.getpid()} for found in while_importing), while_importing
    open("gate", "w").close()
    until(lambda: len(pids(runtime, slow_to_import.spin, "slow")) == 2)
print("done")
"""


def test_no_task_waits_for_what_a_worker_imports(tmp_path: Path) -> None:
    (tmp_path / "slow_to_import.py").write_text(SLOW_TO_IMPORT)
    (tmp_path / "other.py").write_text(QUICK_TO_IMPORT)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
