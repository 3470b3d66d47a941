"""The origin: what it forks, how it tells of it, and that nothing is left behind. Here it has imported no Airflow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from headrace.testing import wait_until
from headrace_airflow import wire
from headrace_airflow.bench.processes import has_ended
from headrace_airflow.wire import Channel, Message

ORIGIN = """
import socket, sys
from headrace_airflow.origin import Origin
from headrace_airflow.wire import Channel
Origin(Channel(socket.socket(fileno=int(sys.argv[1])))).run()
"""


class Node:
    """A daemon's side of an origin."""

    def __init__(self) -> None:
        self.channel, theirs = wire.pair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", ORIGIN, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.DEVNULL,
            )

    def fork(self, id: int) -> tuple[int, Channel]:
        """A supervisor: its pid, and the connection to it."""
        channel, theirs = wire.pair()
        with theirs:
            self.channel.send({"t": "fork", "kind": "supervisor", "id": id}, [theirs.fileno()])
        forked = self.told()
        assert (forked["t"], forked["id"]) == ("forked", id)
        return forked["pid"], channel

    def told(self) -> Message:
        received = self.channel.wait(60.0)
        assert received is not None
        return received[0]


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.channel.close()
    assert made.process.wait(60) is not None


def test_a_fork_ends_with_its_connection_and_its_end_is_told(node: Node) -> None:
    pid, channel = node.fork(1)
    channel.close()
    assert node.told() == {"t": "exit", "pid": pid, "code": 0}


def test_a_fork_that_fails_is_no_second_origin(node: Node) -> None:
    pid, channel = node.fork(1)
    channel.send({"t": "run", "name": "a workload without a zygote"})
    assert node.told() == {"t": "exit", "pid": pid, "code": 1}
    channel.close()
    other, channel = node.fork(2)
    channel.close()
    assert node.told() == {"t": "exit", "pid": other, "code": 0}


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "left"])
def test_forks_end_with_the_origin_whatever_becomes_of_it(node: Node, killed: bool) -> None:
    forks = [node.fork(id) for id in range(3)]
    if killed:
        node.process.kill()
    else:
        node.channel.close()
    node.process.wait(60)
    for pid, channel in forks:
        wait_until(lambda pid=pid: has_ended(pid), "the fork's end")
        channel.close()
