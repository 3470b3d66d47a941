"""Tasks see pandas' options as the process that computes has them, wherever they run."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from headrace.config import LANES
from headrace.runtime import Runtime

pd = pytest.importorskip("pandas")


def option(name: str) -> tuple[Any, int]:
    import pandas

    return pandas.get_option(name), os.getpid()


def set_option(name: str, value: Any) -> None:
    import pandas

    pandas.set_option(name, value)


def storage_of_strings() -> str:
    import pandas

    storage: str = pandas.Series(["a"], dtype="string").dtype.storage
    return storage


@pytest.mark.parametrize("lane", LANES)
def test_follow_each_change(lane: str) -> None:
    with Runtime(lane=lane, num_workers=1) as rt:
        for precision in (6, 3, 4):
            with pd.option_context("display.precision", precision):
                seen, pid = rt.submit(option, "display.precision").result()
            assert seen == precision
            assert (pid != os.getpid()) is (lane == "processes")
        assert rt.submit(option, "display.precision").result()[0] == pd.get_option("display.precision")


@pytest.mark.parametrize("lane", LANES)
def test_make_the_same_results(lane: str) -> None:
    with Runtime(lane=lane, num_workers=1) as rt, pd.option_context("mode.string_storage", "python"):
        assert rt.submit(storage_of_strings).result() == "python"


def test_what_a_task_has_set_stays_in_its_worker_until_the_program_sets_something_else() -> None:
    with Runtime(lane="processes", num_workers=1) as rt:
        rt.submit(set_option, "display.precision", 2).result()
        assert rt.submit(option, "display.precision").result()[0] == 2
        assert pd.get_option("display.precision") != 2
        with pd.option_context("display.precision", 9):
            assert rt.submit(option, "display.precision").result()[0] == 9


def test_what_cannot_be_pickled_stays_behind() -> None:
    with (
        Runtime(lane="processes", num_workers=1) as rt,
        pd.option_context("display.float_format", lambda x: f"{x:.1f}", "display.precision", 5),
    ):
        assert rt.submit(option, "display.float_format").result()[0] is None
        assert rt.submit(option, "display.precision").result()[0] == 5


def test_what_cannot_be_unpickled_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(x: float) -> str:
        return f"{x:.1f}"

    monkeypatch.setattr(rounded, "__module__", "__main__")
    monkeypatch.setattr(rounded, "__qualname__", "rounded")
    monkeypatch.setattr(sys.modules["__main__"], "rounded", rounded, raising=False)
    with (
        Runtime(lane="processes", num_workers=1) as rt,
        pd.option_context("display.float_format", rounded, "display.precision", 5),
    ):
        assert rt.submit(option, "display.float_format").result()[0] is None
        assert rt.submit(option, "display.precision").result()[0] == 5
