"""Generators in dask graphs: pipelined on Headrace, and with the same results everywhere."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import dask
import dask.bag as db
import pytest
from dask import delayed
from dask.utils import SerializableLock

import headrace
import headrace_dask
from headrace.config import LANES
from headrace.testing import wait_until

pytestmark = pytest.mark.shares_runtime

TIMEOUT_S = 60.0
SCHEDULERS = ["sync", "threads", "headrace"]


def numbers(n: int) -> Iterator[int]:
    yield from range(n)


def squares(items: Iterable[int]) -> Iterator[int]:
    for item in items:
        yield item * item


def below(items: Iterable[int], most: int) -> Iterator[int]:
    for item in items:
        if item >= most:
            return
        yield item


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_three_stages(scheduler: str) -> None:
    total = delayed(sum)(delayed(squares)(delayed(numbers)(1000)))
    for _ in range(3):
        assert total.compute(scheduler=scheduler) == sum(i * i for i in range(1000))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_generator_as_a_result(scheduler: str) -> None:
    with dask.config.set(scheduler=scheduler):
        result = delayed(squares)(delayed(numbers)(5)).compute()
        assert isinstance(result, Iterator)
        assert next(result) == 0
        assert list(result) == [1, 4, 9, 16]


async def numbers_later(n: int) -> AsyncIterator[int]:
    for number in range(n):
        await asyncio.sleep(0)
        yield number


async def squares_later(items: AsyncIterator[int]) -> AsyncIterator[int]:
    async for item in items:
        yield item * item


def sum_of(items: AsyncIterator[int]) -> int:
    async def main() -> int:
        return sum([item async for item in items])

    return asyncio.run(main())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_three_asynchronous_stages(scheduler: str) -> None:
    total = delayed(sum_of)(delayed(squares_later)(delayed(numbers_later)(100)))
    assert total.compute(scheduler=scheduler) == sum(i * i for i in range(100))


def test_three_stages_in_every_lane(lane: str) -> None:
    stage = delayed(numbers)(1000)
    few, total = dask.compute(delayed(below)(delayed(squares)(stage), 100), delayed(sum)(stage))
    assert (list(few), total) == ([i * i for i in range(10)], 499_500)


def test_a_result_yields_while_the_graph_runs() -> None:
    go_on = threading.Event()

    def produce() -> Iterator[int]:
        yield 1
        assert go_on.wait(TIMEOUT_S)
        yield 2

    result = delayed(produce)().compute(scheduler="headrace")
    assert next(result) == 1
    go_on.set()
    assert list(result) == [2]


def test_a_stream_that_is_persisted(lane: str) -> None:
    (kept,) = dask.persist(delayed(squares)(delayed(numbers)(4)))
    assert delayed(sum)(kept).compute() == 14
    assert list(kept.compute()) == [0, 1, 4, 9]
    assert delayed(list)(kept).compute(scheduler="sync") == [0, 1, 4, 9]


BAGS = {
    "as it is": lambda bag: bag,
    "map": lambda bag: bag.map(lambda x: x + 1),
    "map and filter": lambda bag: bag.map(lambda x: x + 1).filter(lambda x: x % 2),
    "fold": lambda bag: bag.map(lambda x: x * x).fold(lambda a, b: a + b),
    "sum": lambda bag: bag.sum().apply(str),
    "map_partitions": lambda bag: bag.map_partitions(squares).map(lambda x: -x),
    "generators of generators": lambda bag: bag.map_partitions(lambda part: (range(x) for x in part)).flatten(),
    "groups": lambda bag: bag.foldby(lambda x: x % 3, lambda total, x: total + x, 0),
    "accumulate": lambda bag: bag.accumulate(lambda a, b: a + b),
    "take": lambda bag: bag.take(3, npartitions=-1, compute=False),
}


@pytest.mark.parametrize("name", BAGS)
def test_bags_whose_partitions_are_generators(name: str, lane: str) -> None:
    collection = BAGS[name](db.from_delayed([delayed(numbers)(n) for n in (5, 0, 7)]))
    result = collection.compute()
    assert type(result) is not headrace.Stream
    assert result == collection.compute(scheduler="sync")


def test_a_stream_that_two_bags_read(lane: str) -> None:
    part = delayed(numbers)(10)
    one, other = db.from_delayed([part]).map(lambda x: x + 1), db.from_delayed([part]).filter(lambda x: x > 7)
    assert dask.compute(one, other, delayed(sum)(part)) == (list(range(1, 11)), [8, 9], 45)


@pytest.mark.parametrize("ordered", [True, False])
def test_partitions_as_they_get_ready(lane: str, ordered: bool) -> None:
    bag = db.from_sequence(range(20), npartitions=5).map(lambda x: x * x)
    parts = list(headrace_dask.stream(bag, ordered=ordered))
    expected = [[x * x for x in range(4 * p, 4 * p + 4)] for p in range(5)]
    assert parts == expected if ordered else sorted(parts) == expected


@pytest.mark.parametrize("ordered", [True, False])
def test_a_partition_is_yielded_before_the_others_are_ready(ordered: bool) -> None:
    go_on = threading.Event()

    def work(number: int) -> int:
        assert number == 0 or go_on.wait(TIMEOUT_S)
        return number

    bag = db.from_delayed([delayed(lambda n: [work(n)])(number) for number in range(3)])
    parts = headrace_dask.stream(bag, ordered=ordered, lane="threads")
    assert next(parts) == [0]
    go_on.set()
    assert sorted(parts) == [[1], [2]]


def test_other_collections_and_failures() -> None:
    array = pytest.importorskip("dask.array").arange(6, chunks=2)
    assert [block.tolist() for block in headrace_dask.stream(array + 1, ordered=True)] == [[1, 2], [3, 4], [5, 6]]
    assert list(headrace_dask.stream(delayed(sum)([1, 2]))) == [3]

    def fail(x: int) -> int:
        return 1 // x

    parts = headrace_dask.stream(db.from_sequence([1, 0], npartitions=2).map(fail), ordered=True)
    with pytest.raises(ZeroDivisionError):
        list(parts)


# ---- stages run side by side


def until_read(n: int, folder: Path) -> Iterator[int]:
    """Ends only when its first item has come to the end of the pipeline, which begins before it has ended itself."""
    for number in range(n):
        if number == 1:
            until((folder / "read").exists)
        yield number


def tell(item: int, folder: Path) -> int:
    (folder / "read").touch()
    return item


def tell_all(items: Iterable[int], folder: Path) -> int:
    return sum(tell(item, folder) for item in items)


CHAINS: dict[str, tuple[Callable[[Any, Path], Any], Any]] = {
    "map": (lambda bag, folder: bag.map(tell, folder), [0, 1, 2, 3]),
    "map and filter": (lambda bag, folder: bag.map(tell, folder).filter(lambda x: x % 2), [1, 3]),
    "filter and map": (lambda bag, folder: bag.filter(lambda x: x % 2 == 0).map(tell, folder), [0, 2]),
    "fold": (lambda bag, folder: bag.map(tell, folder).fold(lambda a, b: a + b), 6),
    "map, filter, fold": (
        lambda bag, folder: bag.map(tell, folder).filter(lambda x: x % 2).fold(lambda a, b: a + b),
        4,
    ),
    "foldby": (
        lambda bag, folder: bag.map(tell, folder).foldby(lambda x: x % 2, lambda total, x: total + x, 0),
        [(0, 2), (1, 4)],
    ),
}


@pytest.mark.parametrize("lane", ["auto", "threads", "processes"])
@pytest.mark.parametrize("name", CHAINS)
def test_partitions_that_are_generators_stream_through_chains(name: str, lane: str, tmp_path: Path) -> None:
    chain, expected = CHAINS[name]
    bag = chain(db.from_delayed([delayed(until_read)(4, tmp_path)]), tmp_path)
    assert bag.compute(scheduler=headrace_dask.get, lane=lane) == expected


@pytest.mark.parametrize("lane", ["auto", "threads", "processes"])
@pytest.mark.parametrize("read", [until_read, lambda n, folder: (x for x in until_read(n, folder))])
def test_read_transform_aggregate_run_side_by_side(read: Any, lane: str, tmp_path: Path) -> None:
    total = delayed(tell_all)(delayed(squares)(delayed(read)(4, tmp_path)), tmp_path)
    assert total.compute(scheduler=headrace_dask.get, lane=lane) == 14


def numbers_of_one_who_dies(folder: Path) -> Iterator[int]:
    """Dies, the first time, when its reader has had some."""
    for number in range(3000):
        if number == 2999 and not (folder / "died").exists():
            until((folder / "read").exists)
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield number


@headrace.resumable
def noted(items: Iterable[int], folder: Path) -> int:
    with (folder / "read").open("a") as file:
        return sum(file.write("x") for _ in items)


def test_a_resumable_reader_goes_on_when_its_producer_is_run_again(tmp_path: Path) -> None:
    total = delayed(noted)(delayed(numbers_of_one_who_dies)(tmp_path), tmp_path)
    assert total.compute(scheduler=headrace_dask.get, lane="processes") == 3000
    assert (tmp_path / "died").exists()
    assert len((tmp_path / "read").read_text()) == 3000


def sum_here(inputs: list[Any], folder: Path, lock: SerializableLock) -> int:
    items, more = inputs
    with lock, (folder / "read").open("a") as file:
        return more + sum(file.write("x") for _ in items)


def test_a_program_of_this_process_begins_again_when_its_producer_is_run_again(tmp_path: Path) -> None:
    made = delayed(numbers_of_one_who_dies)(tmp_path)
    total = delayed(sum_here)([made, delayed(abs)(-1)], tmp_path, SerializableLock())
    assert total.compute(scheduler=headrace_dask.get, lane="processes") == 3001
    assert (tmp_path / "died").exists()
    assert len((tmp_path / "read").read_text()) > 3000


def named_blocks(pair: tuple[int, int]) -> Iterator[tuple[int, bytes]]:
    name, size_bytes = pair
    for _ in range(10):
        yield name, bytes(size_bytes)


@pytest.mark.parametrize("lane", LANES)
def test_a_program_that_makes_a_stream_is_run_again_with_the_same_inputs(lane: str) -> None:
    with dask.config.set({"headrace.stream_buffer_bytes": 1_000_000}):
        for _ in range(3):  # a graph that is known to be quick goes another way
            stream = headrace_dask.get({"a": (abs, -7), "s": (named_blocks, ["a", 500_000])}, "s", lane=lane)
            for _ in range(3):
                assert [name for name, _ in stream] == [7] * 10


# ---- how far the graph runs ahead of who reads

BLOCK_BYTES = 100_000
BUDGET_BYTES = 10 * BLOCK_BYTES
BLOCKS = 60


class Block:
    """Something large that says how many of its kind there are."""

    nbytes = BLOCK_BYTES
    lock = threading.Lock()
    alive = most = 0

    def __init__(self) -> None:
        with Block.lock:
            Block.alive += 1
            Block.most = max(Block.most, Block.alive)

    def __del__(self) -> None:
        with Block.lock:
            Block.alive -= 1


def until(condition: Callable[[], bool]) -> None:
    wait_until(condition, timeout_s=TIMEOUT_S)


def small_budget() -> Any:
    return dask.config.set({"headrace.stream_buffer_bytes": BUDGET_BYTES, "headrace.num_workers": 2})


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("lane", ["auto", "inline", "threads"])
def test_a_slow_reader_slows_down_the_graph(lane: str, ordered: bool) -> None:
    blocks = db.from_delayed([delayed(lambda: [Block()])() for _ in range(BLOCKS)])
    gc.collect()
    before = Block.most = Block.alive
    with small_budget():
        for _ in range(2):
            taken = 0
            for (block,) in headrace_dask.stream(blocks.map(lambda block: block), ordered=ordered, lane=lane):
                taken += 1
                until(lambda: Block.alive - before >= min(8, BLOCKS - taken))  # noqa: B023 - called here only
                del block
            assert taken == BLOCKS
    assert Block.most - before <= 10 + 2


def noted_block(number: int, folder: str) -> list[bytes]:
    (Path(folder) / str(number)).touch()
    return [bytes(BLOCK_BYTES)]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_slow_reader_slows_down_processes(tmp_path: Path, ordered: bool) -> None:
    """No more is made there than fits either: here it would be seen too late."""
    blocks = db.from_delayed([delayed(noted_block)(number, str(tmp_path)) for number in range(BLOCKS)])
    with small_budget():
        for taken, _ in enumerate(headrace_dask.stream(blocks, ordered=ordered, lane="processes"), 1):
            until(lambda: len(os.listdir(tmp_path)) >= min(taken + 5, BLOCKS))  # noqa: B023 - called here only
            assert len(os.listdir(tmp_path)) <= taken + 10


def test_the_first_key_may_be_the_last_one_that_is_ready(lane: str) -> None:
    """In the order of keys, what waits for it stays within the budget, and nothing waits for ever."""
    ready: list[int] = []

    def work(number: int) -> list[Block]:
        if number == 0 and lane in ("auto", "threads"):
            until(lambda: len(ready) >= 5)
        ready.append(number)
        return [Block()]

    parts = [delayed(work)(number) for number in range(30)]
    with small_budget():
        blocks = headrace_dask.stream(
            db.from_delayed(parts), ordered=True, lane="inline" if lane == "processes" else lane
        )
        del parts
        next(blocks)
        assert len(ready) <= 12
        assert sum(1 for _ in blocks) == 29


def test_outputs_that_others_need_are_no_reason_to_wait(lane: str) -> None:
    """The second one is ready with the first, is larger than the budget, and is due after one that is not begun."""
    large = delayed(lambda: bytes(2 * BUDGET_BYTES))()
    with small_budget():
        first, second, third, fourth = headrace_dask.stream(
            db.from_delayed(
                [delayed(lambda x: [len(x)])(large), delayed(lambda: [1])(), large, delayed(lambda: [2])()]
            ),
            ordered=True,
        )
    assert (first, second, len(third), fourth) == ([2 * BUDGET_BYTES], [1], 2 * BUDGET_BYTES, [2])


def test_partitions_that_are_there_already(lane: str) -> None:
    bag = db.from_sequence(range(40), npartitions=40).map(lambda x: x + 1).persist()
    with small_budget():
        assert list(headrace_dask.stream(bag, ordered=True)) == [[x] for x in range(1, 41)]


@pytest.mark.parametrize("lane", ["auto", "threads"])
def test_an_abandoned_iterator_cancels_what_has_not_begun(lane: str) -> None:
    began: list[int] = []

    def work(number: int) -> list[Block]:
        began.append(number)
        return [Block()]

    with small_budget():
        parts = headrace_dask.stream(db.from_delayed([delayed(work)(number) for number in range(BLOCKS)]), lane=lane)
        assert len(next(parts)) == 1
        until(lambda: len(began) >= 9)  # the graph waits for room
        del parts
        until(lambda: not any(thread.name == "headrace-dask-stream" for thread in threading.enumerate()))
        assert len(began) <= 12


def test_closing_stops_at_the_next_partition() -> None:
    ran: list[int] = []
    step = threading.Semaphore(1)

    def work(number: int) -> Any:
        assert step.acquire(timeout=TIMEOUT_S)
        ran.append(number)
        return [number]

    bag = db.from_delayed([delayed(work)(number) for number in range(50)])
    parts = headrace_dask.stream(bag, lane="inline")
    assert next(parts) == [0]
    parts.close()
    step.release()
    thread = next((t for t in threading.enumerate() if t.name == "headrace-dask-stream"), None)
    if thread is not None:
        thread.join(TIMEOUT_S)
    assert len(ran) == 2
