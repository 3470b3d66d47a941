"""One pytest session of a suite on one scheduler: how it is started, bounded, cleaned up after, and read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from compat_suite import compare
from compat_suite.recipe import Suite
from compat_suite.venv import ROOT
from headrace_dask.bench.process import is_resource_tracker

QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONHASHSEED": "0"}
"""The same for every scheduler: threads of a BLAS would blur the times, a window would need a display, and pytest-xdist
wants the same order of tests in all its workers."""

MARK = "COMPAT_RUN"


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """What runs the graphs. ``lane`` is Headrace's, empty for dask's own."""

    name: str
    lane: str = ""

    def __str__(self) -> str:
        return f"{self.name}[{self.lane}]" if self.lane else self.name

    @property
    def env(self) -> dict[str, str]:
        return {"COMPAT_SCHEDULER": self.name} | ({"HEADRACE_LANE": self.lane} if self.lane else {})


BASELINE = Scheduler("threads")
STOCK_PROCESSES = Scheduler("processes")


@dataclasses.dataclass
class Run:
    """What came of it.

    Args:
        wall_s: from the start of pytest to its end, imports included.
        trouble: why the session as a whole was not in order, or nothing.
        leftovers: command lines of processes that outlived it (and were killed).
    """

    outcomes: compare.Outcomes
    wall_s: float
    trouble: str = ""
    leftovers: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where sessions run.

    Args:
        python: interpreter of the recipe's environment.
        output: directory for logs; a session's name is its file's name there.
        env: of the recipe.
        root: directory with the suites' packages; test ids are relative to it.
        reuse: take earlier runs of stock schedulers from ``output``.
    """

    python: Path
    output: Path
    env: Mapping[str, str]
    root: Path
    reuse: bool = False

    def run(self, suite: Suite, scheduler: Scheduler, targets: Sequence[str], label: str = "") -> Run:
        """Runs the targets of a suite; blocks until pytest has ended or its time is up.

        With ``reuse``, a run of a stock scheduler that was asked for in the same words is read from its log instead.

        Args:
            targets: modules, packages or test ids.
            label: tells this session's files from those of the suite's other sessions on this scheduler.
        """
        stem = "-".join(part for part in (suite.name, scheduler.name, scheduler.lane, label) if part)
        log = self.output / f"{stem}.jsonl"
        summary = self.output / f"{stem}.json"
        asked = [self._command(suite, targets), suite.replace_sync, dict(self.env)]
        if self.reuse and not scheduler.lane and summary.exists():
            kept = json.loads(summary.read_text())
            if kept["asked"] == asked:
                return Run(compare.outcomes(read_log(log)), kept["wall_s"], kept["trouble"], kept["leftovers"])
        summary.unlink(missing_ok=True)
        log.unlink(missing_ok=True)
        run = self._run(suite, scheduler, targets, self.output / stem, log)
        kept = {"wall_s": run.wall_s, "trouble": run.trouble, "leftovers": run.leftovers, "asked": asked}
        summary.write_text(json.dumps(kept))
        return run

    def _run(self, suite: Suite, scheduler: Scheduler, targets: Sequence[str], scratch: Path, log: Path) -> Run:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        (scratch / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
        mark = uuid.uuid4().hex
        env = self._environment(suite, scheduler) | {"COMPAT_LOG": str(log), MARK: mark}
        started = time.monotonic()
        with open(log.with_suffix(".txt"), "wb") as output:
            process = subprocess.Popen(
                self._command(suite, targets), cwd=scratch, env=env, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            trouble = _wait(process, suite.timeout_s)
        wall_s = time.monotonic() - started
        leftovers = _kill_marked(mark)
        shutil.rmtree(scratch, ignore_errors=True)
        return Run(compare.outcomes(read_log(log)), wall_s, trouble, leftovers)

    def _environment(self, suite: Suite, scheduler: Scheduler) -> dict[str, str]:
        ours = ("HEADRACE_", "DASK_", "PYTEST_", "COMPAT_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        env |= QUIET | dict(self.env) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{self.root}"} | scheduler.env
        return env | ({"COMPAT_REPLACE_SYNC": "1"} if suite.replace_sync else {})

    def _command(self, suite: Suite, targets: Sequence[str]) -> list[str]:
        command = [str(self.python), "-m", "pytest", "-c", "pytest.ini", "--rootdir", str(self.root)]
        command += ["-p", "compat_suite.plugin", "-q", "--tb=short", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
        command += ["--timeout", str(suite.test_timeout_s), "-m", suite.markers]
        command += ["-n", str(suite.workers)] if suite.workers else []
        command += [f"--deselect={test}" for item in suite.deselect for test in item.tests]
        return [*command, "--pyargs", *(_address(self.root, target) for target in targets)]


def site_packages(python: Path) -> Path:
    """Where the packages of an interpreter's environment are."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([str(python), "-c", code], text=True).strip())


def read_log(log: Path) -> Iterator[dict[str, object]]:
    """The records of a log; a last line that a kill cut short is left out."""
    if log.exists():
        for line in log.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)


def _address(root: Path, target: str) -> str:
    if "::" not in target:
        return target
    if "0x]" in target or "0x-" in target:  # the plugin has taken an address out of the parameters: run all of them
        target = target.split("[")[0]
    return str(root / target)


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> str:
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return f"killed after {timeout_s:.0f} s"
    finally:
        _kill(pid for pid in psutil.pids() if _group(pid) == process.pid)
        process.wait()
    return "" if code in (0, 1) else f"pytest ended with {code}"  # 1: some tests failed, which is not trouble yet


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def _kill(pids: Iterable[int]) -> list[int]:
    """Kills processes, but for resource trackers; gives those that it has killed.

    A tracker takes away what the killed leave in ``/dev/shm``, and ends after them.
    """
    killed = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if not is_resource_tracker(process):
                process.kill()
                killed.append(pid)
    return killed


def _kill_marked(mark: str, grace_s: float = 10.0) -> list[str]:
    """Kills whatever still carries this run's mark in its environment; gives the command lines.

    Workers notice by themselves that their owner has gone; they get time for that, even on a busy machine.
    """
    found = _outlasting(mark, grace_s)
    killed = _kill(found)
    _outlasting(mark, grace_s)
    return [found[pid] for pid in killed]


def _outlasting(mark: str, grace_s: float) -> dict[int, str]:
    """Waits for the end of those that carry the mark; gives those that are still there after this time."""
    deadline = time.monotonic() + grace_s
    while (found := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)  # they are no children of this process: nothing tells when they end
    return found


def _marked(mark: str) -> dict[int, str]:
    needle = f"{MARK}={mark}".encode()
    found = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if needle in (directory / "environ").read_bytes().split(b"\0"):
                    command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found[int(directory.name)] = command.strip()[:200]
    return found
