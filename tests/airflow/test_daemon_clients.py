"""Schedulers that would start another daemon than the one that there is, on a node without Airflow."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from without_airflow import Node, waits_for

from headrace.testing import wait_until
from headrace_airflow import client, places
from headrace_airflow.wire import Channel, Message

OUTDATED = {"t": "outdated"}
Come = Callable[[], Channel]


@pytest.fixture
def node(make_node: Callable[[], Node]) -> Node:
    return make_node()


@pytest.fixture
def other(node: Node) -> Iterator[Come]:
    """Has a scheduler come that was started with something else."""
    came: list[Channel] = []

    def come() -> Channel:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(places.socket_path(node.place)))
        came.append(Channel(sock))
        came[-1].send({"t": "hello", "role": "scheduler", "fingerprint": "other"})
        return came[-1]

    yield come
    for channel in came:
        channel.close()


def told(scheduler: Channel) -> Message | None:
    """What the daemon says next; ``None``: it has gone."""
    received = scheduler.wait(30.0)
    assert received is not None or scheduler.closed
    return received and received[0]


def welcome(*, ends: bool) -> Message:
    return {"t": "welcome", "ends": ends}


def test_an_idle_daemon_makes_way(node: Node, other: Come) -> None:
    node.leave()
    come = other()
    assert [told(come), told(come), told(come)] == [welcome(ends=True), OUTDATED, None]
    wait_until(lambda: not client.running(node.place), timeout_s=30)


def test_not_while_a_scheduler_is_there_that_would_start_the_same(node: Node, other: Come) -> None:
    come = other()
    assert told(come) == welcome(ends=False)
    assert not node.status()["outdated"]
    node.daemon.close()
    assert told(other()) == welcome(ends=True), "it is outdated from now on, and idle"


def test_what_runs_is_waited_for(node: Node, other: Come) -> None:
    gate = node.folder / "gate"
    node.heard("started", node.submit(waits_for(gate)))
    node.leave()
    come = other()
    assert [told(come), told(come)] == [welcome(ends=False), OUTDATED]
    assert node.status()["outdated"]
    gate.touch()
    assert told(come) is None


def test_a_drained_one_stays(node: Node, other: Come) -> None:
    node.ask({"t": "drain", "on": True})
    node.submit("")
    node.leave()
    come = other()
    assert [told(come), told(come)] == [welcome(ends=False), OUTDATED]
    assert node.status()["drained"]
    node.ask({"t": "drain", "on": False})
    assert told(come) is None
