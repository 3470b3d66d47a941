"""Timelines: what is recorded of tasks wherever they run, and the files that are written of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import headrace
from headrace import testing
from headrace.config import LANES
from headrace.runtime import Runtime


@pytest.fixture
def fonts() -> Iterator[None]:
    """Closes the files of fonts, which matplotlib keeps open for the next picture."""
    manager = pytest.importorskip("matplotlib.font_manager")
    yield
    manager._get_font.cache_clear()


def tasks_of(path: Path) -> list[dict[str, Any]]:
    """The tasks in a trace, in the order of their ends."""
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]


@pytest.mark.parametrize("lane", LANES)
def test_every_task_is_in_the_trace_with_its_place_and_its_time(lane: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with Runtime(lane=lane, num_workers=1) as rt, headrace.trace(path):
        first = rt.submit(testing.slow, 1, 0.05)
        assert rt.submit(testing.inc, first).result() == 2
    slow, inc = tasks_of(path)
    assert (slow["name"], inc["name"]) == ("slow", "inc")
    assert 0.05e6 <= slow["dur"] < 60e6
    assert inc["ts"] >= slow["ts"] + slow["dur"]
    names = {e["tid"]: e["args"]["name"] for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "M"}
    assert names[inc["tid"]].startswith("headrace-worker-" if lane == "processes" else "headrace-")


def test_a_timeline_ends_with_its_context_and_may_hold_another_one(tmp_path: Path) -> None:
    with Runtime(lane="threads", num_workers=1) as rt:
        rt.submit(testing.inc, 1).result()
        with headrace.trace(tmp_path / "outer.json") as outer:
            rt.submit(testing.inc, 2).result()
            with headrace.trace(tmp_path / "inner.json") as inner:
                rt.submit(testing.inc, 3).result()
        rt.submit(testing.inc, 4).result()
    assert (len(outer), len(inner)) == (2, 1)
    assert (len(tasks_of(tmp_path / "outer.json")), len(tasks_of(tmp_path / "inner.json"))) == (2, 1)


def test_a_timeline_is_written_though_what_runs_inside_fails(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with Runtime(lane="threads", num_workers=1) as rt, pytest.raises(testing.TaskError), headrace.trace(path):
        rt.submit(testing.fail, rt.submit(testing.inc, 1)).result()
    assert [task["name"] for task in tasks_of(path)] == ["inc"]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
@pytest.mark.usefixtures("fonts")
def test_a_picture(suffix: str, start: bytes, tmp_path: Path) -> None:
    path = (tmp_path / "run").with_suffix(suffix)
    with Runtime(lane="inline") as rt, headrace.trace(path):
        rt.submit(testing.inc, 1).result()
    assert path.read_bytes().startswith(start)


def test_a_timeline_that_cannot_be_written_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"\.json, \.png, \.svg or \.pdf, not 'run.txt'"), headrace.trace("run.txt"):
        raise AssertionError("it was entered")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="install matplotlib"), headrace.trace(tmp_path / "run.png"):
        raise AssertionError("it was entered")
