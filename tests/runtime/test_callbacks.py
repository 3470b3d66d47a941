"""Callbacks of futures are foreign code: they may wait, raise and submit, and keep no task from running."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from headrace import testing
from headrace.config import LANES
from headrace.runtime import Runtime


@pytest.fixture(params=LANES)
def rt(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(lane=request.param, num_workers=1) as made:
        yield made


def test_a_callback_may_wait_for_another_future(rt: Runtime) -> None:
    got: Future[Any] = Future()
    future = rt.submit(testing.slow, 1, 0.05)
    future.add_done_callback(lambda _: got.set_result(rt.submit(testing.inc, 10).result(timeout=20)))
    assert got.result(timeout=30) == 11


def test_a_callback_that_takes_long_keeps_nothing_waiting(rt: Runtime) -> None:
    go = threading.Event()
    future = rt.submit(testing.slow, 1, 0.05)
    future.add_done_callback(lambda _: go.wait(30))
    try:
        assert rt.submit(testing.inc, future).result(timeout=20) == 2
    finally:
        go.set()


def test_a_callback_that_raises_is_logged_and_others_are_called(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    called = []
    future = rt.submit(testing.slow, 1, 0.05)
    future.add_done_callback(lambda _: testing.fail("in the callback"))
    future.add_done_callback(lambda f: called.append(f.result()))
    rt.shutdown()
    assert called == [1]
    assert "in the callback" in caplog.text


def test_a_callback_of_a_cancelled_future_is_called(rt: Runtime, tmp_path: Any) -> None:
    first = rt.submit(testing.hold, tmp_path)
    second = rt.submit(testing.inc, first)
    states = []
    second.add_done_callback(lambda f: states.append(f.cancelled()))
    assert second.cancel()
    testing.let_go(tmp_path)
    rt.shutdown()
    assert states == [True]


def test_a_callback_of_a_future_that_is_done_is_called_at_once(rt: Runtime) -> None:
    future = rt.submit(testing.inc, 1)
    future.result()
    places = []
    future.add_done_callback(lambda _: places.append(threading.current_thread()))
    assert places == [threading.current_thread()]
