"""Messages between the processes of a node: over real sockets, with real descriptors."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given, settings, strategies

from headrace_airflow.wire import MOST_BYTES, Channel, Message, pair, peer_uid


def channels() -> tuple[Channel, Channel]:
    ours, theirs = pair()
    return ours, Channel(theirs)


def pump(sender: Channel, receiver: Channel) -> list[Message]:
    """Everything that was sent, however many turns it takes."""
    found: list[Message] = []
    while True:
        sender.flush()
        new = receiver.receive()
        found += [message for message, _ in new]
        if not new and not sender.unsent:
            return found


@given(
    strategies.lists(strategies.dictionaries(strategies.text(max_size=5), strategies.text(max_size=2000), max_size=5))
)
@settings(max_examples=50, deadline=None)
def test_messages_arrive_whole_and_in_order(messages: list[Message]) -> None:
    ours, theirs = channels()
    for message in messages:
        ours.send(message)
    assert pump(ours, theirs) == messages
    ours.close()
    theirs.close()


def test_a_peer_that_does_not_read_blocks_nobody() -> None:
    ours, theirs = channels()
    large = {"text": "x" * 3_000_000}
    ours.send(large)
    ours.send({"n": 1})
    assert ours.unsent
    assert pump(ours, theirs) == [large, {"n": 1}]
    ours.close()
    theirs.close()


def test_descriptors_come_with_their_message() -> None:
    ours, theirs = channels()
    pipes = [os.pipe() for _ in range(3)]
    ours.send({"n": 0})
    for number, (read, _) in enumerate(pipes, 1):
        ours.send({"n": number, "padding": "x" * 100_000}, [read])
    received: list[tuple[Message, list[int]]] = []
    while len(received) < 4:
        ours.flush()
        received += theirs.receive()
    assert [(message["n"], len(fds)) for message, fds in received] == [(0, 0), (1, 1), (2, 1), (3, 1)]
    for (read, write), (message, fds) in zip(pipes, received[1:], strict=True):
        os.write(write, str(message["n"]).encode())
        assert os.read(fds[0], 10) == str(message["n"]).encode()
        for fd in (read, write, *fds):
            os.close(fd)
    ours.close()
    theirs.close()


def test_descriptors_that_nobody_took_are_closed() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    read, write = os.pipe()
    socket.send_fds(theirs, [struct.pack("!IB", 100, 1) + b"{"], [write])
    os.close(write)
    assert channel.receive() == []
    channel.close()
    assert os.read(read, 1) == b""  # nobody has the other end any more
    theirs.close()
    os.close(read)


def test_the_last_words_of_a_peer_are_heard() -> None:
    ours, theirs = channels()
    ours.send({"n": 1})
    ours.close()
    assert theirs.wait(1) == ({"n": 1}, [])
    assert theirs.wait(1) is None
    assert theirs.closed
    theirs.close()


def test_what_comes_together_is_taken_one_by_one() -> None:
    ours, theirs = channels()
    for number in range(3):
        ours.send({"n": number})
    assert theirs.wait(1) == ({"n": 0}, [])
    assert theirs.wait(1) == ({"n": 1}, [])
    assert theirs.receive() == [({"n": 2}, [])]
    ours.close()
    theirs.close()


def test_waiting_ends() -> None:
    ours, theirs = channels()
    assert theirs.wait(0.01) is None
    assert not theirs.closed
    ours.close()
    theirs.close()


@pytest.mark.parametrize("head", [struct.pack("!IB", MOST_BYTES + 1, 0), struct.pack("!IB", 2, 200)])
def test_a_peer_that_talks_nonsense_is_dropped(head: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    theirs.sendall(head + b"{}")
    assert channel.receive() == []
    assert channel.closed
    channel.close()
    theirs.close()


def test_the_kernel_says_who_is_there() -> None:
    ours, theirs = socket.socketpair()
    assert peer_uid(ours) == os.getuid()
    ours.close()
    theirs.close()
