"""Workers that somebody else starts: forks of a process that has no threads, as a node's zygote makes them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from headrace import foster
from headrace import testing as t
from headrace.sched.events import WorkerDied

FORKER = """
import importlib, os, sys
module, function, *numbers = sys.argv[1:]
main = getattr(importlib.import_module(module), function)
if (pid := os.fork()) == 0:
    main(*map(int, numbers))
print(pid, flush=True)
_, status, usage = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, flush=True)
"""


class Fork:
    """A grandchild: what has started it collects it and says so."""

    def __init__(self, forker: subprocess.Popen[str]) -> None:
        self._forker = forker
        assert forker.stdout is not None
        self._said = forker.stdout
        self.pid = int(self._said.readline())
        self.pid_fd = os.pidfd_open(self.pid)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pid_fd, signal.SIGKILL)

    def collect(self) -> tuple[int, int] | None:
        code, peak_bytes = map(int, self._said.readline().split())
        self._forker.wait()
        self._said.close()
        return code, peak_bytes

    def forget(self) -> None:
        pass


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[Fork]:
    found: list[Fork] = []

    def start(order: foster.Order) -> foster.Fostered:
        numbers = map(str, [*order.descriptors, *order.numbers])
        forker = subprocess.Popen(
            [sys.executable, "-c", FORKER, order.module, order.function, *numbers],
            pass_fds=order.descriptors,
            env=dict(order.environment),
            stdout=subprocess.PIPE,
            text=True,
        )
        found.append(Fork(forker))
        return found[-1]

    monkeypatch.setattr(foster, "start", start)
    return found


def test_they_work_like_others(hosted: Any, forks: list[Fork]) -> None:
    with hosted(2) as (host, lane):
        host.execute(lane, 1, host.add(1, os.getpid, wanted=True), host.add(2, os.getppid, wanted=True))
        assert host.values[1] == forks[0].pid
        assert host.values[2] not in (os.getpid(), 1)
        assert len(forks) == 2


def test_their_end_is_told_by_who_has_started_them(hosted: Any, forks: list[Fork]) -> None:
    with hosted() as (host, lane):
        lane.run(1, [host.add(1, t.crash, "segfault")])
        lane.flush()
        host.next(WorkerDied, worker=1, running=1)
        assert lane.obituary(1)[0] == "killed by SIGSEGV"


def test_a_worker_that_nobody_starts_is_started_here(hosted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(order: foster.Order) -> foster.Fostered:
        raise OSError("nobody is there")

    monkeypatch.setattr(foster, "start", refuse)
    with hosted() as (host, lane):
        host.execute(lane, 1, host.add(1, os.getppid, wanted=True))
        assert host.values[1] == os.getpid()


IN_WORKER = """
import os
import dask, headrace_dask
from headrace import companions
assert dask.config.get("scheduler", None) is None
companions.install({"HEADRACE_COMPANIONS": "os:this,dask:headrace_dask"})
print(dask.config.get("scheduler"))
"""


def test_companions_of_what_a_fork_has_imported_already_have_their_say() -> None:
    done = subprocess.run([sys.executable, "-c", IN_WORKER], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "headrace"
    assert "Beautiful is better than ugly." in done.stdout, "imported because its module was"
