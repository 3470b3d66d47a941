"""The items of a generator task: gathered in chunks, read while they come and after, pickled with their buffers."""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import UnpicklableError
from headrace.store.pickling import pack
from headrace_airflow.items import Gatherer, StreamedItems
from headrace_airflow.spool import BrokenStreamError, Reader, hear
from headrace_airflow.unpickling import unpickle


def gathered(items: Any) -> StreamedItems:
    with closing(Gatherer()) as gatherer:
        for item in items:
            gatherer.add(item)
        return gatherer.end()


def stored(items: StreamedItems) -> StreamedItems:
    packed = pack(items)
    found = unpickle([memoryview(packed.data), *packed.buffers])
    assert isinstance(found, StreamedItems)
    return found


@given(st.lists(st.one_of(st.integers(), st.text(), st.binary(max_size=10_000), st.none(), st.lists(st.integers()))))
def test_they_are_a_list_wherever_they_are(values: list[Any]) -> None:
    for items in (gathered(values), stored(gathered(values))):
        assert items == values
        assert list(items) == list(items) == values
        assert len(items) == len(values)
        assert [items[index] for index in range(-len(values), len(values))] == values + values
        assert items[1:-1] == values[1:-1]
        with pytest.raises(IndexError):
            items[len(values)]


def test_what_is_no_list_differs() -> None:
    items = gathered([1, 2])
    assert items != (1, 2)
    assert items != [1, 2, 3]
    assert items == stored(items)
    assert repr(items) == "<2 streamed items>"


def test_arrays_stand_on_the_memory_of_the_stream() -> None:
    arrays = [np.arange(100_000) + number for number in range(20)]
    items = stored(gathered(arrays))
    found = list(items)
    assert all(np.array_equal(*pair) for pair in zip(found, arrays, strict=True))
    assert not any(array.flags.owndata for array in found)
    assert all(array.ctypes.data % 64 == 0 for array in gathered(arrays))
    found[0][:] = 0  # changes this copy alone
    assert np.array_equal(gathered(arrays)[0], arrays[0])


def test_an_older_pickle_protocol_can_carry_them() -> None:
    assert pickle.loads(pickle.dumps(gathered([1, "two"]), protocol=4)) == [1, "two"]


def test_many_small_items_are_few_chunks() -> None:
    gatherer = Gatherer()
    written = sum(gatherer.add(number) for number in range(100_000))
    assert gatherer.end() == list(range(100_000))
    assert written < 1_000


def test_an_item_is_what_it_was_when_it_was_yielded() -> None:
    row: list[int] = []

    def rows() -> Iterator[list[int]]:
        for number in range(3):
            row.append(number)
            yield row

    assert gathered(rows()) == [[0], [0, 1], [0, 1, 2]]


def test_an_item_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(UnpicklableError, match=r"items 1 to 1\[0\]"):
        gathered([1, threading.Lock()])


def waiting(doorbells: list[socket.socket]) -> Callable[[], list[socket.socket]]:
    """Hands these out once."""
    there = [doorbells]
    return lambda: there.pop() if there else []


class Beside:
    """A reader in another thread, which says what it has got."""

    def __init__(self, gatherer: Gatherer) -> None:
        self.got: list[Any] = []
        self.moved = threading.Condition()
        doorbell, at_writer = socket.socketpair()
        gatherer.stream.newcomers = waiting([at_writer])
        self.at_writer, self.doorbell = at_writer, doorbell
        self.items = StreamedItems(gatherer.stream.id, Reader(gatherer.stream.fd, hear(doorbell)))
        self.thread = threading.Thread(target=self.read)
        self.thread.start()

    def read(self) -> None:
        end: Any = "end"
        try:
            for item in self.items:
                self.say(item)
        except BrokenStreamError:
            end = "broken"
        self.say(end)

    def say(self, item: Any) -> None:
        with self.moved:
            self.got.append(item)
            self.moved.notify_all()

    def has(self, *expected: Any) -> bool:
        with self.moved:
            return self.moved.wait_for(lambda: self.got == list(expected), timeout=30)

    def close(self) -> None:
        self.thread.join(30)
        self.at_writer.close()
        self.doorbell.close()


def test_a_reader_has_each_chunk_as_soon_as_it_is_written() -> None:
    gatherer = Gatherer()
    gatherer.add(0)
    beside = Beside(gatherer)
    assert beside.has(0)
    for number in range(1, 5):  # as fast as can be: nothing may wait for the next one
        gatherer.add(number)
        assert beside.has(*range(number + 1))
    gatherer.end()
    assert beside.has(*range(5), "end")
    assert (len(beside.items), beside.items[-1]) == (5, 4)
    beside.close()


def test_a_reader_whose_producer_is_gone_hears_of_it() -> None:
    gatherer = Gatherer()
    gatherer.add(0)
    beside = Beside(gatherer)
    assert beside.has(0)
    beside.at_writer.shutdown(socket.SHUT_RDWR)
    assert beside.has(0, "broken")
    beside.close()


def test_a_writer_waits_for_no_reader() -> None:
    gatherer = Gatherer()
    doorbell, at_writer = socket.socketpair()
    gatherer.stream.newcomers = waiting([at_writer])
    for number in range(5_000):
        gatherer.add([number])
    doorbell.close()
    gatherer.add([5_000])
    at_writer.close()
    assert gatherer.end() == [[number] for number in range(5_001)]


def test_descriptors_go_with_what_had_them() -> None:
    before = len(os.listdir("/proc/self/fd"))
    items = gathered([1])
    assert len(os.listdir("/proc/self/fd")) > before
    del items
    assert len(os.listdir("/proc/self/fd")) == before
