"""Cancellation goes both ways: to those who read a stream, and to those who make it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from endless import Endless

from headrace.graph import Graph
from headrace.runtime import Runtime

TIMEOUT_S = 60.0
BUDGET_BYTES = 10_000


@pytest.fixture(params=["threads", "auto"])
def rt(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(lane=request.param, num_workers=2, stream_buffer_bytes=BUDGET_BYTES, check=True) as runtime:
        yield runtime


def count(n: int) -> Iterator[int]:
    yield from range(n)


def exhaust(items: Iterable[int], _: object = None) -> None:
    for _ in items:
        pass


def test_a_reader_that_is_cancelled_before_it_begins_stops_its_producer(rt: Runtime) -> None:
    made, later = Endless(), threading.Event()
    reader = rt.submit(exhaust, rt.submit(made), rt.submit(later.wait, TIMEOUT_S))
    assert made.began.wait(TIMEOUT_S)
    assert not made.stopped.is_set()  # somebody will read
    assert reader.cancel()
    assert made.stopped.wait(TIMEOUT_S)
    later.set()


def test_one_of_two_readers_is_cancelled(rt: Runtime) -> None:
    later = threading.Event()
    numbers = rt.submit(count, 100_000)
    first = rt.submit(exhaust, numbers, rt.submit(later.wait, TIMEOUT_S))
    second = rt.submit(sum, numbers)
    assert first.cancel()
    assert second.result(TIMEOUT_S) == sum(range(100_000))
    later.set()


def test_readers_of_a_cancelled_producer_are_cancelled(rt: Runtime) -> None:
    later = threading.Event()
    made = rt.submit(exhaust, (), rt.submit(later.wait, TIMEOUT_S))
    stage = rt.submit(Endless(), made)
    reader = rt.submit(exhaust, stage)
    assert stage.cancel()
    with pytest.raises(CancelledError):
        reader.result(TIMEOUT_S)
    later.set()


@pytest.mark.parametrize("stages", [1, 3])
def test_who_leaves_a_graph_stops_all_of_its_stages(rt: Runtime, stages: int) -> None:
    """The caller is interrupted, as by Ctrl-C, once the last stage is at work."""
    chain = [Endless() for _ in range(stages)]
    calls: list[Any] = [(chain[0], (), None, ())]
    calls += [(stage, (None,), None, ((0, number),)) for number, stage in enumerate(chain[1:])]
    calls.append((exhaust, (None,), None, ((0, stages - 1),)))
    names: list[Any] = [f"stage-{number}" for number in range(stages + 1)]
    deps = [(), *[(number,) for number in range(stages)]]
    graph = Graph(names, calls, deps, names, [stages])

    def interrupt(signum: int, frame: Any) -> None:
        raise InterruptedError

    def send() -> None:
        assert chain[-1].began.wait(TIMEOUT_S)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, interrupt)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(InterruptedError):
            rt.run(graph)
    finally:
        sender.join()
        signal.signal(signal.SIGALRM, before)
    assert all(stage.stopped.wait(TIMEOUT_S) for stage in chain)
