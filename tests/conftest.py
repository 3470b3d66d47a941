"""What every test is held to: it leaves nothing behind.

Before and after each test the process tree, the threads, the descriptors, ``/dev/shm`` and the temporary directory are
looked at. What is new must go away by itself within a bounded time, or the test fails. A test that shares a runtime
with others (the default runtime, or one of a module's fixture) says so with ``pytest.mark.shares_runtime``: then the
default runtime is closed and the look is taken after its module. What a fixture of the whole session opens in the
context ``lasting()`` is the session's: it is no test's fault that it is there.
"""

from __future__ import annotations

import copyreg
import dataclasses
import gc
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import psutil
import pytest

pytest_plugins = ["pytester"]

GONE_WITHIN_S = 5.0
MARK = f"HEADRACE_TEST_RUN={uuid.uuid4().hex}"
"""In the environment of every process that the tests start, so that orphans are recognised too."""
SHARED_MEMORY = "/dev/shm"
LASTING: set[str] = set()
"""What belongs to the whole session, as :meth:`Footprint.beyond` words it."""

# Slowness on a busy machine is no failure; in CI the same examples every time.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("default")


@dataclasses.dataclass(frozen=True)
class Footprint:
    """What of the outside world this process holds, each as identity → description."""

    processes: dict[int, str]
    threads: dict[int, str]
    descriptors: dict[str, str]
    files: dict[str, str]

    @classmethod
    def take(cls) -> Footprint:
        return cls(_processes(), _threads(), _descriptors(), _files())

    def beyond(self, before: Footprint) -> list[str]:
        """What is held now and was not then, in words."""
        new = [
            f"{kind}: {description}"
            for kind, now, then in (
                ("process", self.processes, before.processes),
                ("thread", self.threads, before.threads),
                ("descriptor", self.descriptors, before.descriptors),
                ("file", self.files, before.files),
            )
            for identity, description in now.items()
            if identity not in then
        ]
        return [line for line in new if line not in LASTING]


def _processes() -> dict[int, str]:
    mark = MARK.encode()
    orphans: list[int] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment = Path("/proc", pid, "environ").read_bytes()
        except OSError:  # it has ended, or is not ours to read
            continue
        if mark in environment and int(pid) != os.getpid():
            orphans.append(int(pid))
    children = {process.pid for process in psutil.Process().children(recursive=True)}
    return {pid: _describe(pid, "child" if pid in children else "orphan") for pid in {*children, *orphans}}


def _describe(pid: int, kind: str) -> str:
    try:
        process = psutil.Process(pid)
        return f"{kind} {pid} ({process.status()}): {' '.join(process.cmdline())[:120]}"
    except psutil.Error:
        return f"{kind} {pid}"


def _threads() -> dict[int, str]:
    """Python's threads, but for those of dask's own thread pool, which it keeps by design."""
    threaded = sys.modules.get("dask.threaded")
    pools = [pool for by_size in threaded.pools.values() for pool in by_size.values()] if threaded else []
    if threaded:
        pools.append(threaded.default_pool)
    kept = {thread for pool in pools for thread in getattr(pool, "_threads", ())}
    return {id(thread): repr(thread) for thread in threading.enumerate() if thread not in kept}


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of the listing itself
            continue
        if target not in ("/dev/null", "/dev/urandom"):  # libraries keep one of these open for good
            found[f"{name} {target}"] = f"{name} -> {target}"
    return found


def _files() -> dict[str, str]:
    folders = [folder for folder in (SHARED_MEMORY, tempfile.gettempdir()) if os.path.isdir(folder)]
    paths = [f"{folder}/{name}" for folder in folders for name in os.listdir(folder)]
    return dict(zip(paths, paths, strict=True))


def _left_behind(before: Footprint) -> list[str]:
    """What is still there after a bounded wait; the garbage collector is asked only if something is."""
    end_s = time.monotonic() + GONE_WITHIN_S
    foreign: set[str] = set()
    while left := [line for line in Footprint.take().beyond(before) if line not in foreign]:
        if time.monotonic() > end_s:
            return left
        foreign.update(_of_others([line for line in left if line.startswith(f"file: {SHARED_MEMORY}/")]))
        gc.collect()
        time.sleep(0.01)  # nothing tells when orphans end, or when a file goes
    return []


def _of_others(lines: list[str]) -> list[str]:
    """Those files in shared memory that a process which is not of this run maps: other programs use it too.

    Told by inode: a semaphore is mapped under another name than the one it has afterwards.
    """
    if not lines:
        return []
    ours = {os.getpid(), *_processes()}
    inodes = {inode for pid in psutil.pids() if pid not in ours for inode in _mapped_shared_memory(pid)}
    return [line for line in lines if _inode(line.removeprefix("file: ")) in inodes]


def _mapped_shared_memory(pid: int) -> list[str]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:  # it has ended
        return []
    return [line.split()[4] for line in lines if f" {SHARED_MEMORY}/" in line]


def _inode(path: str) -> str:
    try:
        return str(os.stat(path).st_ino)
    except OSError:  # gone in the meantime
        return ""


def _close_default_runtime() -> None:
    runtime = sys.modules.get("headrace.runtime")
    if runtime is not None:
        runtime.close_default()


@pytest.fixture(scope="session")
def lasting(_own_surroundings: None) -> Callable[[], AbstractContextManager[None]]:
    """A context in which fixtures of the session open what lasts longer than the test that was the first to ask."""

    @contextmanager
    def opening() -> Iterator[None]:
        before = Footprint.take()
        yield
        LASTING.update(Footprint.take().beyond(before))

    return opening


@pytest.fixture
def core_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes back, for one test, what other tests' imports have changed for all of this process's pickling.

    Adapters have locks stay in their process; tblib, which distributed imports, has exceptions travel in its own way.
    """
    from headrace.store import pickling

    for kind, reducer in list(copyreg.dispatch_table.items()):
        if getattr(reducer, "__module__", "").startswith("tblib"):
            monkeypatch.delitem(copyreg.dispatch_table, kind)
    reducers, awaited = pickling._reducers.copy(), pickling._awaited.copy()
    pickling._reducers.clear()
    pickling._awaited.clear()
    yield
    pickling._reducers.update(reducers)  # and not in place of it: a test may be the first to import an adapter
    pickling._awaited.update(awaited)


@pytest.fixture(scope="session", autouse=True)
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gives the run a temporary directory of its own, so that whatever appears in it comes from the tests."""
    tmp_path_factory.getbasetemp()  # pytest's own stays where people look for it
    name, value = MARK.split("=")
    folder = tempfile.mkdtemp(prefix="ht-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
    shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def _reported(_own_surroundings: None) -> Iterator[set[str]]:
    """Looks after the module; gives the set of what its tests were blamed for already."""
    before = Footprint.take()
    reported: set[str] = set()
    yield reported
    _close_default_runtime()
    if left := [line for line in _left_behind(before) if line not in reported]:
        pytest.fail("the module left behind:\n" + "\n".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest, _reported: set[str]) -> Iterator[None]:
    if request.node.get_closest_marker("shares_runtime"):
        yield
        return
    before = Footprint.take()
    yield
    if left := _left_behind(before):
        _reported.update(left)
        pytest.fail("the test left behind:\n" + "\n".join(left), pytrace=False)
