"""Pipelines that stay: requests in, answers out, each stage at its own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from headrace.errors import StreamError, UserError
from headrace.runtime import Runtime

TIMEOUT_S = 30.0


def plus_one(request: int) -> int:
    return request + 1


def numbered(requests: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    yield from enumerate(requests)


def inverses(requests: Iterable[int]) -> Iterator[float]:
    for request in requests:
        yield 1 / request


@pytest.fixture
def rt() -> Iterator[Runtime]:
    with Runtime(lane="threads", num_workers=2) as runtime:
        yield runtime


def test_requests_go_through_all_stages_in_order(rt: Runtime) -> None:
    with rt.stream(plus_one, numbered) as pipeline:
        futures = [pipeline.submit(request) for request in range(100)]
        assert [future.result(TIMEOUT_S) for future in futures] == [(n, n + 1) for n in range(100)]
        latency = pipeline.latency()
        assert latency.requests == 100
        assert 0.0 < latency.median_s <= latency.p99_s


def test_stages_are_at_different_requests_at_a_time(rt: Runtime) -> None:
    meeting = threading.Barrier(2, timeout=TIMEOUT_S)

    def meet_at(stage: int) -> Any:
        def at(request: int) -> int:
            if request == stage:
                meeting.wait()
            return request

        return at

    with rt.stream(meet_at(1), meet_at(0)) as pipeline:
        assert [pipeline.submit(request).result for request in range(2)][1](TIMEOUT_S) == 1


def test_a_failure_is_one_requests(rt: Runtime) -> None:
    with rt.stream(inverses, lambda x: 100 // int(x)) as pipeline:
        futures = [pipeline.submit(request) for request in (1, 0, 4, 1)]
        assert futures[0].result(TIMEOUT_S) == futures[3].result(TIMEOUT_S) == 100
        for failed in futures[1:3]:
            with pytest.raises(ZeroDivisionError):
                failed.result(TIMEOUT_S)
        assert pipeline.latency().requests == 2


def test_a_stage_that_gives_no_answer(rt: Runtime) -> None:
    def silent(requests: Iterable[int]) -> Iterator[int]:
        yield from ()

    def talkative(requests: Iterable[int]) -> Iterator[int]:
        yield 1
        yield from requests

    for stage in (silent, talkative):
        with rt.stream(stage) as pipeline, pytest.raises(StreamError, match="gave no answer"):
            pipeline.submit(1).result(TIMEOUT_S)


class Doubler:
    def __call__(self, requests: Iterable[int]) -> Iterator[int]:
        for request in requests:
            yield 2 * request

    def method(self, requests: Iterable[int]) -> Iterator[int]:
        yield from self(requests)


def test_whatever_is_a_generator_function(rt: Runtime) -> None:
    stages = Doubler(), Doubler().method, functools.partial(Doubler.method, Doubler())
    with rt.stream(*stages) as pipeline:
        assert [future.result(TIMEOUT_S) for future in map(pipeline.submit, range(5))] == [0, 8, 16, 24, 32]


def test_a_decorator_that_hides_a_generator_function(rt: Runtime) -> None:
    """What it returns is known when it is called: here for each request, which makes no answer of a generator."""

    def hides(kind: Callable[[Any], Any]) -> Callable[..., Any]:
        @functools.wraps(Doubler.__call__)
        def call(requests: Any) -> Any:
            return kind(Doubler()(requests))

        return call

    with rt.stream(hides(iter)) as pipeline, pytest.raises(StreamError, match="must itself be a generator function"):
        pipeline.submit(1).result(TIMEOUT_S)
    with rt.stream(hides(list)) as pipeline:
        assert pipeline.submit([1, 2]).result(TIMEOUT_S) == [2, 4]


def test_the_end(rt: Runtime) -> None:
    pipeline = rt.stream(plus_one)
    answer = pipeline.submit(1)
    rt.shutdown()
    assert answer.result(0) == 2
    with pytest.raises(StreamError, match="has ended"):
        pipeline.submit(1)
    with pytest.raises(RuntimeError):
        rt.stream(plus_one)


def test_what_is_no_pipeline(rt: Runtime) -> None:
    async def later(request: int) -> int:
        return request

    for stages in ((), (1,), (plus_one, later)):
        with pytest.raises(UserError):
            rt.stream(*stages)  # type: ignore[arg-type]


def test_latency_of_no_request(rt: Runtime) -> None:
    with rt.stream(plus_one) as pipeline:
        assert pipeline.latency() == (0, 0.0, 0.0)
