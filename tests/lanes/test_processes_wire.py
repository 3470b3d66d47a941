"""The channel: frames of any size, in order, whole, with the descriptors that belong to them."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.lanes.processes.wire import Channel, is_plain


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    one, other = map(Channel, socket.socketpair())
    yield one, other
    one.close()
    other.close()


def receive_all(sender: Channel, receiver: Channel) -> list[tuple[Any, list[int]]]:
    """What comes, with the sender pumped until nothing is left."""
    ops = []
    while True:
        done = sender.pump()
        more, ended = receiver.receive()
        assert not ended
        ops += more
        if done and not more:
            return ops


def test_frames_arrive_whole_and_in_order_however_large(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    sizes = [0, 1, 65_523, 65_524, 65_525, 65_536, 1_000_000, 3, 5_000_000, 7]
    taken = [one.send([(i, b"x" * size)]) for i, size in enumerate(sizes)]
    assert not all(taken)
    assert [(op[0], len(op[1])) for op, _ in receive_all(one, other)] == list(enumerate(sizes))


def test_descriptors_stay_with_their_frame(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    files = [os.memfd_create(f"file-{i}") for i in range(6)]
    for i, fd in enumerate(files):
        os.write(fd, b"%d" % i)
    one.send([("none",)])
    one.send([("large", b"x" * 1_000_000), ("later",)], files[0:1])  # its end comes in many pieces
    one.send([("two",)], files[1:3])
    one.send([("none",)])
    one.send([("three",)], files[3:6])
    received = receive_all(one, other)
    assert [op[0] for op, _ in received] == ["none", "large", "later", "two", "none", "three"]
    contents = [[os.pread(fd, 9, 0) for fd in fds] for op, fds in received if op[0] != "later"]
    assert contents == [[], [b"0"], [b"1", b"2"], [], [b"3", b"4", b"5"]]
    for fd in {fd for _, fds in received for fd in fds} | set(files):
        os.close(fd)


@pytest.mark.parametrize("count", [32, 33, 300])
def test_any_number_of_descriptors_goes_with_a_frame(pair: tuple[Channel, Channel], count: int) -> None:
    one, other = pair
    files = [os.memfd_create(f"file-{i}") for i in range(3)]
    sent = [files[i % 3] for i in range(count)]
    one.send([("before", b"x" * 1_000_000)], files[:1])  # the socket does not take all of it at once
    one.send([("many", i) for i in range(count)], sent)
    one.send([("after",)], files[:2])
    received = receive_all(one, other)
    assert [op[0] for op, _ in received] == ["before", *["many"] * count, "after"]
    many = received[1][1]
    assert [os.fstat(fd).st_ino for fd in many] == [os.fstat(fd).st_ino for fd in sent]
    for fd in [*files, *received[0][1], *many, *received[-1][1]]:
        os.close(fd)


def test_descriptors_that_nobody_took_are_closed(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    before = len(os.listdir("/proc/self/fd"))
    with open("/dev/null") as file:
        one._backlog.append((memoryview(b"half a frame"), [file.fileno()]))
        one.pump()
    other.receive()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    other.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_a_descriptor_that_there_is_no_room_for_is_missed(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.send([(1,)], [0])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            other.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_other_side_s_end_is_seen_after_its_last_words(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.send([(1,)])
    one.close()
    words = []
    for _ in range(3):
        ops, ended = other.receive()
        words += ops
    assert ended
    assert [op for op, _ in words] == [(1,)]
    assert other.send([(2,)])  # swallowed


@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(1, 400))
def test_frames_can_be_cut_anywhere(bodies: list[bytes], cut: int) -> None:
    left, right = socket.socketpair()
    whole, sink = map(Channel, socket.socketpair())
    receiver = Channel(right)
    for body in bodies:
        whole.send([(body,)])
    stream = b""
    while bodies and (piece := _peek(sink)):
        stream += piece
    received = []
    for start in range(0, len(stream), cut):
        left.sendall(stream[start : start + cut])
        received += [op[0] for op, _ in receiver.receive()[0]]
    assert received == bodies
    for end in (left, receiver, whole, sink):
        end.close()


def _peek(channel: Channel) -> bytes:
    try:
        return channel._socket.recv(1 << 16)
    except BlockingIOError:
        return b""


def test_plain_means_exactly_these_types() -> None:
    class Text(str):
        pass

    assert is_plain((1, 1.5, None, True, 1j, "a", b"b"))
    for value in (Text("a"), np.float64(1), (1,), "x" * 2000, bytearray(b""), object):
        assert not is_plain((1, value))
