"""A pytest plugin that makes one scheduler the default of somebody else's test suite, and proves that it was used.

Loaded with ``-p compat_suite.plugin`` inside the suite's own environment; told what to do by environment variables,
since it also has to reach pytest-xdist's workers. Needs pytest and dask (and Headrace, when that is under test).

What "default" means here, from the weakest claim to the strongest; the last two are what makes a run worth something:

- dask's config names the scheduler, before the suite is imported and again before every test that finds it changed;
- the ``assert_eq`` of dask.array, dask.dataframe and dask.bag, through which most assertions go, says
  ``scheduler="sync"`` in its signature: that default becomes the scheduler under test. A test that passes
  ``scheduler=`` keeps its choice;
- with ``COMPAT_REPLACE_SYNC``, the names of the synchronous scheduler mean the scheduler under test as well. That is
  for suites whose shared helpers choose it for every assertion (xarray's ``assertLazyAnd`` and ``CountingScheduler``).

Every graph execution is counted where it happens, below the public functions, so that what dask and xarray recognise by
identity (``dask.threaded.get``) stays itself. The counts travel with each test's report.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

SYNC_NAMES = ("sync", "synchronous", "single-threaded")
ASSERTIONS = ("dask.array.utils", "dask.dataframe.utils", "dask.bag.utils")
ENTRANCES = (
    ("threads", "dask.threaded", "get_async"),
    ("processes", "dask.multiprocessing", "get_async"),
    ("sync", "dask.local", "get_async"),
    ("headrace", "headrace.runtime", "Runtime.run"),
)
"""Where each scheduler begins to execute a graph: (name, module, attribute that is looked up there at each call)."""

executed: collections.Counter[str] = collections.Counter()
"""Graphs executed so far in this process, by scheduler. Increments race between threads; a lost one does no harm."""


def pytest_configure(config: pytest.Config) -> None:
    """Prepares dask in this process; must come before any test module is imported."""
    scheduler = os.environ["COMPAT_SCHEDULER"]
    if scheduler == "headrace":
        importlib.import_module("headrace_dask")
    for name, module, attribute in ENTRANCES:
        _count(name, module, attribute)
    if os.environ.get("COMPAT_REPLACE_SYNC"):
        _replace_sync(scheduler)
    config.pluginmanager.register(KeepScheduler(scheduler))
    if not hasattr(config, "workerinput"):  # only the process that sees all reports writes them
        config.pluginmanager.register(Recorder(os.environ["COMPAT_LOG"]))


class KeepScheduler:
    """Keeps the default in place all the time, and reports what each test executed."""

    def __init__(self, scheduler: str) -> None:
        self.scheduler = scheduler
        self._set()

    def _set(self) -> None:
        import dask

        if dask.config.get("scheduler", None) != self.scheduler:
            dask.config.set(scheduler=self.scheduler)

    def pytest_collection_finish(self) -> None:
        for module in ASSERTIONS:
            if module in sys.modules:  # what the suite has not imported is left alone: it costs seconds
                _change_default(sys.modules[module].assert_eq, self.scheduler)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._set()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        before = executed.copy()
        try:
            return (yield)
        except (AssertionError, pytest.skip.Exception):
            raise
        except BaseException:
            item.add_report_section("call", "headrace", _decisions())
            raise
        finally:
            item.user_properties.append(("graphs", dict(executed - before)))


class Recorder:
    """Writes one JSON line for each phase of each test, as it ends, so that a crash loses nothing."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "a", buffering=1)  # noqa: SIM115 - open until pytest ends

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line: dict[str, Any] = {
            "test": stable(report.nodeid),
            "when": report.when,
            "outcome": _outcome(report),
            "duration_s": round(report.duration, 4),
        }
        if report.when == "call":
            line["graphs"] = dict(report.user_properties).get("graphs", {})
        if report.failed:
            line["error"] = report.longreprtext[-6000:]
            line["decisions"] = [text for name, text in report.sections if name == "Captured headrace call"]
        self._write(line)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            error = str(report.longrepr)
            self._write({"test": stable(report.nodeid), "when": "collect", "outcome": "failed", "error": error})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write({"test": stable(nodeid), "when": "start", "at_s": time.time()})

    def _write(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(ValueError):  # closed: a report after the end of the session
            self.file.write(json.dumps(line) + "\n")


def _outcome(report: pytest.TestReport) -> str:
    """A test that its authors expect to fail is no witness when it passes (some pass now and then): ``xpassed``."""
    if hasattr(report, "wasxfail") and not report.failed:
        return "xfailed" if report.skipped else "xpassed"
    return report.outcome


def stable(nodeid: str) -> str:
    """A test's id without the addresses that some parameters print, which differ from run to run."""
    return re.sub(r"0x[0-9a-f]{6,}", "0x", nodeid)


def _decisions(entries: int = 100) -> str:
    """The last decisions of the runtime: what somebody needs who looks for the reason of a hang or of a broken one."""
    runtime: Any = getattr(sys.modules.get("headrace.runtime"), "_default", None)
    with contextlib.suppress(Exception):  # whatever state it is in: the test's own failure is what counts
        log = list(runtime._engine._machine.log)[-entries:]
        return "\n".join(f"{entry.now:.6f} {entry.event}\n    -> {entry.commands}" for entry in log)[-40_000:]
    return ""


def _count(name: str, module_name: str, attribute: str) -> None:
    try:
        owner: Any = importlib.import_module(module_name)
    except ImportError:
        return
    *path, last = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, last)

    def counted(*args: Any, **kwargs: Any) -> Any:
        executed[name] += 1
        return original(*args, **kwargs)

    functools.update_wrapper(counted, original)
    # dask leaves its own frames out of tracebacks, which its tests check; it knows them by the name of the file
    counted.__code__ = counted.__code__.replace(co_filename=original.__code__.co_filename)
    setattr(owner, last, counted)


def _change_default(assert_eq: Any, scheduler: str) -> None:
    """Changes the default in place: the suites have imported the function itself by name."""
    names = assert_eq.__code__.co_varnames[: assert_eq.__code__.co_argcount]
    position = names.index("scheduler") - len(names)
    defaults = list(assert_eq.__defaults__)
    if defaults[position] not in (*SYNC_NAMES, scheduler):
        raise RuntimeError(f"{assert_eq.__module__}.assert_eq no longer has scheduler='sync' by default: look again")
    defaults[position] = scheduler
    assert_eq.__defaults__ = tuple(defaults)


def _replace_sync(scheduler: str) -> None:
    import dask
    from dask.base import named_schedulers

    for name in SYNC_NAMES:
        named_schedulers[name] = named_schedulers[scheduler]
    dask.get = named_schedulers[scheduler]
