"""Streams between tasks of one process: every lane gives what one after the other would give."""

from __future__ import annotations

import asyncio
import gc
import pickle
import sqlite3
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
from endless import Endless

import headrace
from headrace.config import LANES
from headrace.errors import StreamError
from headrace.graph import Graph
from headrace.runtime import Runtime
from headrace.stream.source import Source
from headrace.testing import wait_until

TIMEOUT_S = 60.0
LIVE = [lane for lane in LANES if lane != "processes"]
PUMPED = ["threads", "auto"]


def count(n: int) -> Iterator[int]:
    yield from range(n)


async def count_async(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0)
        yield i


def doubled(items: Iterable[int]) -> Iterator[int]:
    for item in items:
        yield 2 * item


def endless() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


def break_after(n: int) -> Iterator[int]:
    yield from range(n)
    raise ZeroDivisionError("broken")


def first(items: Iterable[int], n: int) -> list[int]:
    return list(islice(items, n))


@pytest.fixture(params=LANES)
def rt(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(lane=request.param, num_workers=2, check=True) as runtime:
        yield runtime


@pytest.fixture(params=PUMPED)
def live(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(lane=request.param, num_workers=2, check=True) as runtime:
        yield runtime


# ---- in every lane


def test_generators_are_read_by_generators_and_by_functions(rt: Runtime) -> None:
    numbers = rt.submit(count, 1000)
    twice = rt.submit(doubled, numbers)
    assert rt.submit(sum, twice).result(TIMEOUT_S) == 999_000
    assert rt.submit(sum, numbers).result(TIMEOUT_S) == 499_500
    assert list(twice.result(TIMEOUT_S)) == list(range(0, 2000, 2))


@pytest.mark.parametrize(
    "make",
    [count_async, lambda n: (i for i in range(n)), lambda n: headrace.streamed(map(int, range(n)))],
    ids=["async", "expression", "marked"],
)
def test_whatever_makes_a_stream(rt: Runtime, make: Callable[[int], Any]) -> None:
    assert rt.submit(sum, rt.submit(make, 100)).result(TIMEOUT_S) == 4950


def test_a_marked_asynchronous_iterator(rt: Runtime) -> None:
    marked = rt.submit(lambda: headrace.streamed(count_async(10)))
    assert rt.submit(list, marked).result(TIMEOUT_S) == list(range(10))


def test_a_stream_in_a_list_of_inputs(rt: Runtime) -> None:
    both = [rt.submit(count, 3), rt.submit(count, 2)]
    assert rt.submit(lambda streams: [list(s) for s in streams], both).result(TIMEOUT_S) == [[0, 1, 2], [0, 1]]


def test_a_handle_has_what_a_list_has(rt: Runtime) -> None:
    stream = rt.submit(count, 10).result(TIMEOUT_S)
    assert isinstance(stream, headrace.Stream)
    assert (len(stream), stream[3], stream[-1], stream[2:4], bool(stream)) == (10, 3, 9, [2, 3], True)
    assert list(stream) == list(stream) == list(range(10))
    with pytest.raises(IndexError):
        stream[10]
    assert pickle.loads(pickle.dumps(stream))[-1] == 9


def test_a_handle_that_is_pickled_waits_for_the_end(rt: Runtime) -> None:
    def sent_on(items: Any) -> bytes:
        return pickle.dumps(items)

    for made, found in ((count, list(range(3000))), (break_after, [*range(3000), "broken"])):
        stream = rt.submit(made, 3000)
        for pickled in (rt.submit(sent_on, stream).result(TIMEOUT_S), pickle.dumps(rt.submit(made, 3000).result())):
            assert _items_and_error(pickle.loads(pickled)) == found


def _items_and_error(stream: Iterable[int]) -> list[Any]:
    found: list[Any] = []
    try:
        for item in stream:
            found.append(item)
    except ZeroDivisionError as error:
        found.append(str(error))
    return found


def test_a_second_look_may_come_when_the_future_is_gone(rt: Runtime) -> None:
    with Runtime(lane=rt.settings.lane, num_workers=2, stream_buffer_bytes=1000, check=True) as small:
        stream = small.submit(doubled, small.submit(count, 3000)).result(TIMEOUT_S)
        assert sum(stream) == sum(range(0, 6000, 2))
        gc.collect()
        wait_until(lambda: not small.status()["tasks"].get("done"), "the end of the futures", TIMEOUT_S)
        assert sum(stream) == sum(range(0, 6000, 2))


def test_a_handle_is_an_iterator_once_next_was_called(rt: Runtime) -> None:
    stream = rt.submit(count, 4).result(TIMEOUT_S)
    assert next(stream) == 0
    assert list(stream) == [1, 2, 3]
    assert next(stream, None) is None


def test_every_consumer_has_a_handle_of_its_own(rt: Runtime) -> None:
    def head_and_rest(items: Any) -> tuple[int, list[int]]:
        return next(items), list(items)

    stream = rt.submit(count, 3)
    futures = [rt.submit(head_and_rest, stream) for _ in range(3)]
    assert [future.result(TIMEOUT_S) for future in futures] == [(0, [1, 2])] * 3


def test_a_failure_comes_where_it_happened(rt: Runtime) -> None:
    stream = rt.submit(break_after, 3)

    assert rt.submit(_items_and_error, stream).result(TIMEOUT_S) == [0, 1, 2, "broken"]
    with pytest.raises(ZeroDivisionError, match="broken"):
        rt.submit(sum, stream).result(TIMEOUT_S)
    handle = stream.result(TIMEOUT_S)
    assert handle[2] == 2
    with pytest.raises(ZeroDivisionError):
        len(handle)


def test_nothing_is_made_by_an_empty_generator(rt: Runtime) -> None:
    assert rt.submit(list, rt.submit(count, 0)).result(TIMEOUT_S) == []


def test_a_graph(rt: Runtime) -> None:
    graph = Graph(
        keys=["numbers", "twice", "sum", "both"],
        calls=[
            (count, (100,), None, ()),
            (doubled, (None,), None, ((0, 0),)),
            (sum, (None,), None, ((0, 1),)),
            (lambda a, b: (sum(a), b), (None, None), None, ((0, 0), (1, 2))),
        ],
        deps=[(), (0,), (1,), (0, 2)],
        families=["count", "doubled", "sum", "both"],
        outputs=[3, 1],
    )
    for _ in range(3):  # unknown, known, and so quick that it is run at once
        both, twice = rt.run(graph)
        assert (both, list(twice)) == ((4950, 9900), list(range(0, 200, 2)))


def test_a_task_may_pass_a_stream_on(rt: Runtime) -> None:
    passed = rt.submit(lambda stream: stream, rt.submit(count, 5))
    assert rt.submit(list, passed).result(TIMEOUT_S) == [0, 1, 2, 3, 4]


# ---- while it is made


@pytest.mark.parametrize("lane", LIVE)
def test_an_endless_stream_stops_when_nobody_reads_it(lane: str) -> None:
    numbers = Endless()
    with Runtime(lane=lane, num_workers=2, check=True, stream_buffer_bytes=10_000) as rt:
        assert rt.submit(first, rt.submit(numbers), 5).result(TIMEOUT_S) == [0, 1, 2, 3, 4]
        gc.collect()
        assert numbers.stopped.wait(TIMEOUT_S)


def test_consumers_start_before_the_end(live: Runtime) -> None:
    go_on = threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        assert go_on.wait(TIMEOUT_S)
        yield 2

    def consume(items: Iterable[int]) -> list[int]:
        found = []
        for item in items:
            found.append(item)
            go_on.set()
        return found

    assert live.submit(consume, live.submit(numbers)).result(TIMEOUT_S) == [1, 2]


@pytest.mark.parametrize("lane", LIVE)
@pytest.mark.parametrize("workers", [1, 2])
def test_more_stages_than_slots(lane: str, workers: int) -> None:
    with Runtime(lane=lane, num_workers=workers, check=True, stream_buffer_bytes=100) as rt:
        stage: Any = rt.submit(count, 500)
        for _ in range(12):
            stage = rt.submit(doubled, stage)
        assert rt.submit(sum, stage).result(TIMEOUT_S) == sum(range(500)) * 2**12


@pytest.mark.parametrize("lane", LIVE)
def test_a_consumer_that_waits_for_another_one(lane: str) -> None:
    """The second reads from the start when the first is done: no buffer of 100 bytes is large enough for that."""
    with Runtime(lane=lane, num_workers=1, check=True, stream_buffer_bytes=100) as rt:
        graph = Graph(
            keys=["numbers", "sum", "shares"],
            calls=[
                (count, (2000,), None, ()),
                (sum, (None,), None, ((0, 0),)),
                (lambda items, total: sum(item / total for item in items), (None, None), None, ((0, 0), (1, 1))),
            ],
            deps=[(), (0,), (0, 1)],
            families=["count", "sum", "shares"],
            outputs=[2],
        )
        assert rt.run(graph) == [pytest.approx(1.0)]


@pytest.mark.parametrize("lane", LIVE)
def test_a_diamond_whose_branches_read_at_different_speeds(lane: str) -> None:
    def every(items: Iterable[int], nth: int) -> Iterator[int]:
        yield from islice(items, None, None, nth)

    def join(one: Iterable[int], other: Iterable[int]) -> list[tuple[int, int]]:
        return list(zip(one, other, strict=False))

    with Runtime(lane=lane, num_workers=2, check=True, stream_buffer_bytes=64) as rt:
        graph = Graph(
            keys=["numbers", "all", "few", "join"],
            calls=[
                (count, (3000,), None, ()),
                (every, (None, 1), None, ((0, 0),)),
                (every, (None, 10), None, ((0, 0),)),
                (join, (None, None), None, ((0, 1), (1, 2))),
            ],
            deps=[(), (0,), (0,), (1, 2)],
            families=["count", "all", "few", "join"],
            outputs=[3],
        )
        assert rt.run(graph) == [[(i, 10 * i) for i in range(300)]]


def test_a_producer_waits_for_its_slowest_reader(live: Runtime) -> None:
    made: list[int] = []

    def blocks() -> Iterator[bytes]:
        for number in range(1000):
            made.append(number)
            yield bytes(100_000)

    with Runtime(lane=live.settings.lane, stream_buffer_bytes=1_000_000) as rt:
        stream = rt.submit(blocks).result(TIMEOUT_S)
        reader = iter(stream)
        for number in range(50):
            next(reader)
            assert len(made) <= number + 14
        stream.close()
        reader.close()  # type: ignore[attr-defined]


def test_small_items_travel_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed: list[int] = []
    seal = Source._seal

    def count_chunks(source: Source, size_bytes: int) -> list[Any]:
        sealed.append(size_bytes)
        return seal(source, size_bytes)

    monkeypatch.setattr(Source, "_seal", count_chunks)
    with Runtime(lane="threads") as rt:
        assert rt.submit(sum, rt.submit(count, 100_000)).result(TIMEOUT_S) == sum(range(100_000))
    assert len(sealed) <= 1_000


def test_what_is_read_goes_and_a_second_look_runs_the_generator_again(live: Runtime) -> None:
    class Block:
        nbytes = 100_000

    alive: weakref.WeakSet[Block] = weakref.WeakSet()
    runs: list[int] = []

    def blocks() -> Iterator[Block]:
        runs.append(1)
        for _ in range(100):
            block = Block()
            alive.add(block)
            yield block

    with Runtime(lane=live.settings.lane, stream_buffer_bytes=1_000_000) as rt:
        stream = rt.submit(blocks).result(TIMEOUT_S)
        for _ in stream:
            assert len(alive) <= 15
        assert len(runs) == 1
        assert sum(1 for _ in stream) == 100
        assert len(runs) == 2


def test_a_small_stream_is_kept(rt: Runtime) -> None:
    stream = rt.submit(count, 10_000).result(TIMEOUT_S)
    assert sum(stream) == sum(stream) == 49_995_000


def test_what_cannot_be_made_again_gives_what_it_gives(live: Runtime) -> None:
    source = iter(range(100_000))

    def once() -> Any:
        return headrace.streamed(source)

    with Runtime(lane=live.settings.lane, stream_buffer_bytes=1000) as rt:
        stream = rt.submit(once).result(TIMEOUT_S)
        assert sum(stream) == sum(range(100_000))
        assert list(stream) == []  # it is run again, and gives what it gives


def test_one_thread_steps_a_generator(live: Runtime) -> None:
    threads: set[int] = set()

    def rows() -> Iterator[int]:
        database = sqlite3.connect(":memory:")
        for number in range(5000):
            threads.add(threading.get_ident())
            yield database.execute("select ?", (number,)).fetchone()[0]

    assert live.submit(sum, live.submit(rows)).result(TIMEOUT_S) == sum(range(5000))
    assert len(threads) == 1


def test_a_result_is_read_while_it_is_made(live: Runtime) -> None:
    go_on = threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        assert go_on.wait(TIMEOUT_S)
        yield 2

    graph = Graph(["n"], [(numbers, (), None, ())], [()], ["n"], [0])
    (stream,) = live.run(graph)
    reader = iter(stream)
    assert next(reader) == 1
    go_on.set()
    assert next(reader) == 2
    assert next(reader, None) is None


def test_a_failed_consumer_holds_nobody_up(live: Runtime) -> None:
    def fail(items: Iterable[int]) -> None:
        for _ in items:
            raise ValueError("no more")

    with Runtime(lane=live.settings.lane, stream_buffer_bytes=1000) as rt:
        numbers = rt.submit(count, 100_000)
        failed = rt.submit(fail, numbers)
        total = rt.submit(sum, numbers)
        assert total.result(TIMEOUT_S) == sum(range(100_000))
        with pytest.raises(ValueError, match="no more"):
            failed.result(TIMEOUT_S)


def test_a_failed_consumer_stops_its_producer_though_its_error_is_held(live: Runtime) -> None:
    numbers = Endless()

    def fail(items: Iterable[int]) -> None:
        for item in items:
            1 // (item - 50)

    with Runtime(lane=live.settings.lane, stream_buffer_bytes=1000) as rt:
        with pytest.raises(ZeroDivisionError) as held:
            rt.submit(fail, rt.submit(numbers)).result(TIMEOUT_S)
        assert numbers.stopped.wait(TIMEOUT_S)
    assert held.value.__traceback__ is not None


def test_a_failed_graph_stops_its_streams(live: Runtime) -> None:
    numbers = Endless()

    def fail(items: Iterable[int]) -> None:
        next(iter(items))
        raise ValueError("enough")

    calls: list[Any] = [
        (numbers, (), None, ()),
        (sum, (None,), None, ((0, 0),)),
        (fail, (None,), None, ((0, 0),)),
    ]
    graph = Graph(["n", "sum", "fail"], calls, [(), (0,), (0,)], ["n", "sum", "fail"], [1, 2])
    with pytest.raises(ValueError, match="enough"):
        live.run(graph)
    assert numbers.stopped.wait(TIMEOUT_S)


def test_who_asks_for_the_status_while_a_stream_outlives_its_future(live: Runtime) -> None:
    stream = live.submit(endless).result(TIMEOUT_S)
    gc.collect()
    wait_until(lambda: not live.status()["tasks"].get("done"), "the end of the future", TIMEOUT_S)
    assert next(stream) == 0


def test_the_end_of_a_runtime_ends_its_streams() -> None:
    with Runtime(lane="threads", stream_buffer_bytes=1000) as rt:
        stream = rt.submit(endless).result(TIMEOUT_S)
        assert next(stream) == 0
    with pytest.raises(StreamError, match="ended"):
        for _ in stream:
            pass


def test_a_task_that_has_run_is_reported_before_another_one_waits(live: Runtime) -> None:
    """Of one batch: what waits for a future needs one that depends on what has run before it."""
    with Runtime(lane=live.settings.lane, num_workers=1, check=True) as rt:
        gate = threading.Event()
        busy = rt.submit(gate.wait, TIMEOUT_S)  # so that the others come in one batch
        one = rt.submit(int, 1)
        waits = rt.submit(lambda: two.result(TIMEOUT_S))
        two = rt.submit(int.__add__, one, 1)
        gate.set()
        assert (waits.result(TIMEOUT_S), busy.result(TIMEOUT_S)) == (2, True)


def test_arrow_batches_come_as_they_are(rt: Runtime) -> None:
    pa = pytest.importorskip("pyarrow")

    def batches() -> Iterator[Any]:
        for number in range(5):
            yield pa.record_batch({"x": [number, number]})

    stream = rt.submit(batches)
    assert rt.submit(lambda s: s.to_reader().read_all()["x"].to_pylist(), stream).result(TIMEOUT_S) == [
        number for number in range(5) for _ in range(2)
    ]
    assert pa.RecordBatchReader.from_stream(stream.result(TIMEOUT_S)).read_all().num_rows == 10


def test_a_stream_takes_no_lock_that_ctrl_c_could_leave_behind(live: Runtime) -> None:
    """A reader in the main thread is interrupted by a signal's handler, and the stream can still be read."""
    import signal

    go_on = threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        assert go_on.wait(TIMEOUT_S)
        yield 2

    def handler(signum: int, frame: Any) -> None:
        raise InterruptedError

    stream = live.submit(numbers).result(TIMEOUT_S)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        began_s = time.monotonic()
        with pytest.raises(InterruptedError):
            list(stream)
        assert time.monotonic() - began_s < 5.0
    finally:
        signal.signal(signal.SIGALRM, before)
    go_on.set()
    assert list(stream) == [1, 2]
