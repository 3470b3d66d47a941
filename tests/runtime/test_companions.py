"""Workers follow states of the owner that companions share, and only what is new to them."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import companions
from headrace.graph import Graph
from headrace.runtime import Runtime


def told() -> dict[str, bytes]:
    """What this process has been told and has no companion for."""
    return dict(companions._not_applied)


def graph_of(count: int) -> Graph:
    calls: list[Any] = [(told, (), None, ())] * count
    indices = list(range(count))
    return Graph(indices[:], calls, [()] * count, ["told"] * count, outputs=indices)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Alone shared is "number", which counts how often it was asked for, and says so."""
    times: list[int] = []

    def state() -> bytes:
        times.append(len(times))
        return b"%d" % len(times)

    monkeypatch.setattr(companions, "_shared", {"number": (state, lambda state: None)})
    return times


def test_workers_are_told_once_a_job(asked: list[int]) -> None:
    with Runtime(lane="processes", num_workers=2) as rt:
        for job in (1, 2):
            assert {found["number"] for found in rt.run(graph_of(50))} == {b"%d" % job}
        assert len(asked) == 2


def test_nobody_is_asked_when_nothing_goes_to_workers(asked: list[int]) -> None:
    with Runtime(lane="threads", num_workers=2) as rt:
        rt.run(graph_of(5))
    assert asked == []


def test_futures_follow_each_change(asked: list[int]) -> None:
    with Runtime(lane="processes", num_workers=1) as rt:
        first, second = rt.submit(told).result(), rt.submit(told).result()
    assert int(first["number"]) < int(second["number"])


@pytest.mark.parametrize("state", [lambda: 1 // 0, lambda: "text"], ids=["raises", "not bytes"])
def test_a_state_that_cannot_be_told_does_no_harm(
    state: Any, asked: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(companions, "_silent", set())
    monkeypatch.setitem(companions._shared, "broken", (state, lambda state: None))
    with Runtime(lane="processes", num_workers=1) as rt:
        for _ in range(2):
            assert rt.submit(told).result(timeout=30).keys() == {"number"}
    assert capsys.readouterr().err.count("Error: ") == 1


def test_a_companion_that_comes_later_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(companions, "_shared", {})
    monkeypatch.setattr(companions, "_not_applied", {})
    seen: list[Any] = []
    companions.follow({"number": b"1"})
    companions.follow({"number": b"2"})
    companions.share("number", lambda: b"", seen.append)
    companions.follow({"number": b"3"})
    assert seen == [b"2", b"3"]


def test_a_state_that_cannot_be_applied_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(companions, "_shared", {"number": (lambda: b"", int)})
    companions.follow({"number": b"one"})
    assert "invalid literal for int()" in capsys.readouterr().err
