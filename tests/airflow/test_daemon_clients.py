"""Schedulers that would start another daemon than the one that there is, on a node without Airflow."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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
    """What the daemon says next, but for what room there is; ``None``: it has gone."""
    while True:
        received = scheduler.wait(30.0)
        assert received is not None or scheduler.closed
        if received is None or received[0]["t"] != "room":
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


def hear_room(scheduler: Channel, *, full: bool, drained: bool) -> None:
    received = scheduler.wait(30.0)
    assert received is not None
    assert received[0] == {"t": "room", "full": full, "drained": drained}


def test_schedulers_hear_what_room_there_is(node: Node) -> None:
    node.ask({"t": "drain", "on": True})
    hear_room(node.daemon, full=False, drained=True)
    comes = client.connect(node.place, "scheduler")
    assert comes is not None
    node.submit("")
    hear_room(node.daemon, full=True, drained=True)
    hear_room(comes, full=False, drained=True)
    hear_room(comes, full=True, drained=True)
    node.ask({"t": "drain", "on": False})
    hear_room(comes, full=False, drained=False)
    comes.close()


class TestTaskThatAnotherSchedulerTakesOver:
    def test_is_known_to_wait_and_is_no_longer_the_formers(self, node: Node) -> None:
        node.ask({"t": "drain", "on": True})
        key = node.submit("")
        adopts = client.connect(node.place, "scheduler")
        assert adopts is not None
        node.daemon.send({"t": "renew", "id": key, "token": "new"})
        wait_until(lambda: len(node.status()["tasks"]) == 1, timeout_s=30)
        adopts.send({"t": "adopt", "ids": [key, "unknown"]})
        answer = told(adopts)
        assert answer is not None
        (waiting,) = answer["waiting"]
        assert answer["ids"] == [waiting["id"]] == [key]
        assert waiting["workload"]["token"] == "new"
        assert node.heard("ended", key)["dropped"]
        node.ask({"t": "drain", "on": False})
        for kind in ("started", "ended"):
            message = told(adopts)
            assert message is not None
            assert message["t"] == kind
        adopts.close()

    def test_does_not_wait_if_it_runs(self, node: Node) -> None:
        gate = node.folder / "gate"
        key = node.submit(waits_for(gate))
        node.heard("started", key)
        adopts = client.connect(node.place, "scheduler")
        assert adopts is not None
        answer = client.ask(adopts, {"t": "adopt", "ids": [key]})
        assert answer is not None
        assert (answer["ids"], answer["waiting"]) == ([key], [])
        gate.touch()
        adopts.close()


def test_what_a_daemon_is_started_with_is_not_in_its_command_line(node: Node) -> None:
    *_, path, place = Path("/proc", str(node.status()["pid"]), "cmdline").read_text().rstrip("\0").split("\0")
    assert (json.loads(path), place) == ([folder for folder in sys.path if folder], str(node.place))
