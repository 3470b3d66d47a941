"""Tasks see dask's settings as the process that computes has them, wherever they run."""

from __future__ import annotations

import functools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from dask import delayed

from headrace.graph import Graph
from headrace.runtime import Runtime
from headrace.task import Call
from headrace.testing import hold, identity, let_go, wait_for_start
from headrace_dask import settings

pytestmark = pytest.mark.shares_runtime


def read(name: str, number: int = 0) -> tuple[Any, int]:
    return dask.config.get(name, "unset"), os.getpid()


def read_and_spin(name: str, number: int) -> tuple[Any, int]:
    sum(range(200_000))
    return read(name)


class Setting:
    """Unpickles as the setting's value where, and when, that happens."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> Any:
        return dask.config.get, (self.name, "unset")


def independent(*calls: Call) -> Graph:
    indices: list[Any] = list(range(len(calls)))
    return Graph(indices[:], list(calls), [()] * len(calls), ["calls"] * len(calls), outputs=indices)


def values_of(name: str, count: int = 8) -> set[Any]:
    """What tasks see; in lane ``processes`` surely in another process."""
    results = dask.compute([delayed(read)(name, number) for number in range(count)])[0]
    if dask.config.get("headrace.lane") == "processes":
        assert os.getpid() not in {pid for _, pid in results}
    return {value for value, _ in results}


def test_follow_each_change(lane: str) -> None:
    assert values_of("own.setting") == {"unset"}
    for number in range(3):
        with dask.config.set({"own.setting": number, "own.other": 1}):
            assert values_of("own.setting") == {number}
        assert values_of("own.setting") == {"unset"}


def test_own_settings_of_dask(lane: str) -> None:
    before = dask.config.get("dataframe.shuffle.method", "unset")
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        assert values_of("dataframe.shuffle.method") == {"p2p"}
    assert values_of("dataframe.shuffle.method") == {before}


def test_family_that_moves_to_workers_in_the_middle() -> None:
    with dask.config.set({"scheduler": "headrace", "headrace.lane": "auto", "own.setting": 5}):
        results = dask.compute([delayed(read_and_spin)("own.setting", number) for number in range(200)])[0]
    assert {value for value, _ in results} == {5}


def test_functions_that_read_settings_when_they_are_unpickled() -> None:
    function = functools.partial(identity, Setting("own.setting"))
    with dask.config.set({"scheduler": "headrace", "headrace.lane": "processes"}):
        for value in (1, 2, 1, "unset"):
            # Several tasks, and jobs that follow each other closely: each worker opens the function each time.
            with dask.config.set({"own.setting": value}):
                assert dask.compute([delayed(function)() for _ in range(8)])[0] == [value] * 8


def test_functions_that_read_settings_in_two_jobs_at_once(tmp_path: Path) -> None:
    """A worker that has tasks of one job in its queue is sent the same function for another, under other settings."""
    reads: Call = (functools.partial(identity, Setting("own.setting")), (), None, ())
    blocker: Call = (hold, (str(tmp_path),), None, ())
    with Runtime(lane="processes", num_workers=1) as rt, ThreadPoolExecutor(2) as callers:
        with dask.config.set({"own.setting": 1}):
            first = callers.submit(rt.run, independent(blocker, reads, reads))
            wait_for_start(tmp_path)
        with dask.config.set({"own.setting": 2}):
            second = callers.submit(rt.run, independent(reads, reads))
            let_go(tmp_path)
            assert second.result() == [2, 2]
        assert first.result() == ["task", 1, 1]


def test_what_cannot_be_pickled_stays_behind() -> None:
    with dask.config.set({"scheduler": "headrace", "headrace.lane": "processes"}):
        with dask.config.set({"own.lock": threading.Lock(), "own.setting": lambda: 7, "own.array": np.arange(1000.0)}):
            assert values_of("own.lock") == {"unset"}
            ((function, _),), ((array, _),) = dask.compute([delayed(read)("own.setting")], [delayed(read)("own.array")])
            assert function() == 7
            assert array.sum() == 499500
        assert values_of("own.setting") == {"unset"}


def test_where_to_compute_is_not_told() -> None:
    with dask.config.set({"scheduler": "threads", "headrace.lane": "processes"}):
        ((value, pid),) = dask.compute([delayed(read)("scheduler")], scheduler="headrace")[0]
        assert value == "headrace"
        assert pid != os.getpid()


def test_defaults_that_a_task_has_brought_along_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task may be the first in its worker to import a library that adds a section to the settings."""
    monkeypatch.setattr(settings, "_told", {})
    monkeypatch.setattr(dask.config, "defaults", list(dask.config.defaults))
    before = settings._state()
    with dask.config.set({"own.setting": 1, "own.other": 1}):
        told = settings._state()
    try:
        settings._apply(told)
        assert dask.config.get("own") == {"setting": 1, "other": 1}
        dask.config.update_defaults({"library": {"default": 2}})
        settings._apply(before)
        assert dask.config.get("own", None) is None
        assert dask.config.get("library.default") == 2
    finally:
        dask.config.config.pop("library", None)
        dask.config.config.pop("own", None)
