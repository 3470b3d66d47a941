"""Parked tasks: what wakes them, and their heartbeats, also when the API server does not answer as it should."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from headrace_airflow import internals, wire
from headrace_airflow.forks import Child
from headrace_airflow.internals import Refused
from headrace_airflow.loop import Loop
from headrace_airflow.parking import Parking
from headrace_airflow.pulse import Pulse
from headrace_airflow.wire import Channel, Message

Send = Callable[[str, str, str, int], str]


class Node:
    """A daemon that parks tasks; a task's other ends, and the pulse's, are the test's."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.parking = Parking(self.loop, self._start_pulse, self._wake)
        self.woken: list[tuple[str, bool]] = []
        self.records: list[Message] = []

    def park(self, key: str) -> list[socket.socket]:
        """Parks a task; the ends that it has of its connections, the last of which is the zygote's."""
        pairs = [socket.socketpair() for _ in range(5)]
        *connections, zygote = [ours.detach() for ours, _ in pairs]
        descriptors = [*connections, os.pidfd_open(os.getpid()), zygote]
        record = {"pid": 7, "token": "old"}
        self.parking.park(key, {"ti": {"id": f"ti {key}"}}, "http://server/", record, descriptors)
        return [theirs for _, theirs in pairs]

    def _start_pulse(self, hear: Callable[[Message], None], exited: Callable[[int], None]) -> Child:
        ours, theirs = wire.pair()
        self.pulse, self.pulse_exited = Channel(theirs), exited
        self.loop.listen(ours, hear, lambda: None)
        return Child(ours, exited)

    def _wake(self, key: str, look: bool) -> None:
        self.woken.append((key, look))
        record, descriptors = self.parking.leave(key)
        self.records.append(record)
        for fd in descriptors:
            os.close(fd)


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.pulse.close()
    made.loop.turn(0.0)  # sees that, and closes its own end
    made.loop._selector.close()


@pytest.mark.parametrize("which", range(5), ids=["requests", "stdout", "stderr", "logs", "zygote"])
def test_whatever_a_task_does_wakes_it(node: Node, which: int) -> None:
    ends = node.park("a")
    node.loop.turn(0.0)
    assert node.woken == []
    ends[which].send(b"!")
    node.loop.turn(30.0)
    assert node.woken == [("a", False)]
    for end in ends:
        end.close()


def test_a_pulse_beats_for_those_that_are_parked_and_ends_with_the_last(node: Node) -> None:
    ends = [*node.park("a"), *node.park("b")]
    assert [told(node.pulse) for _ in range(2)] == [beat("a"), beat("b")]
    node.parking.drop("a")
    assert told(node.pulse) == {"t": "rest", "id": "a"}
    node.parking.drop("b")
    assert told(node.pulse) == {"t": "rest", "id": "b"}
    assert node.pulse.wait(30.0) is None
    assert node.pulse.closed
    for end in ends:
        assert end.recv(1) == b"", "its zygote sees that, and kills it"
        end.close()


def test_what_the_api_server_wants_of_a_task_wakes_it_with_its_last_token(node: Node) -> None:
    ends = node.park("a")
    node.pulse.send({"t": "token", "id": "a", "token": "new"})
    node.pulse.send({"t": "wake", "id": "gone"})
    node.pulse.send({"t": "wake", "id": "a"})
    node.loop.turn(30.0)
    assert node.woken == [("a", True)]
    assert node.records == [{"pid": 7, "token": "new"}]
    for end in ends:
        end.close()


def test_without_a_pulse_all_are_woken_and_the_next_has_another(node: Node) -> None:
    ends = [*node.park("a"), *node.park("b")]
    first = node.pulse
    node.pulse_exited(-9)
    assert node.woken == [("a", False), ("b", False)]
    ends += node.park("c")
    assert node.pulse is not first
    node.parking.drop("c")
    for end in ends:
        end.close()
    first.close()
    node.loop.turn(30.0)


@contextmanager
def pulse(send: Send, longest_s: float = 3600.0, every_s: float = 0.01, parked: str = "") -> Iterator[Channel]:
    """A pulse that sends often, two at once, at first for these tasks; the daemon's end of the connection to it."""
    ours, theirs = wire.pair()
    for key in parked:
        ours.send(beat(key))
    thread = threading.Thread(target=Pulse(Channel(theirs), [send] * 2, every_s, longest_s).run)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(30)
        assert not thread.is_alive()
        theirs.close()


def beat(key: str) -> Message:
    return {"t": "beat", "id": key, "ti": f"ti {key}", "pid": 7, "token": "old", "server": "http://server/"}


def told(daemon: Channel) -> Message:
    received = daemon.wait(30.0)
    assert received is not None
    return received[0]


def test_the_next_heartbeat_has_the_token_of_the_last_answer() -> None:
    sent = []
    enough = threading.Event()

    def send(server: str, token: str, ti: str, pid: int) -> str:
        sent.append((server, token, ti, pid))
        if len(sent) == 3:
            enough.set()
        return "new"

    with pulse(send) as daemon:
        daemon.send(beat("a"))
        assert told(daemon) == {"t": "token", "id": "a", "token": "new"}
        assert enough.wait(30)
    assert sent[:3] == [("http://server/", token, "ti a", 7) for token in ("old", "new", "new")]


def test_a_task_that_shall_not_go_on_is_a_supervisors_affair() -> None:
    sent = []

    def send(_server: str, token: str, ti: str, _pid: int) -> str:
        sent.append(ti)
        if ti == "ti b":
            raise Refused
        return token

    with pulse(send) as daemon:
        daemon.send(beat("a"))
        daemon.send(beat("b"))
        assert told(daemon) == {"t": "wake", "id": "b"}
    assert sent.count("ti b") == 1


def test_those_that_are_due_are_sent_side_by_side_the_first_ones_first() -> None:
    sent: list[str] = []
    pairs: list[set[str]] = []
    enough = threading.Event()

    def together() -> None:
        pairs.append(set(sent[-2:]))
        if len(pairs) == 3:
            enough.set()

    both = threading.Barrier(2, together)

    def send(_server: str, token: str, ti: str, _pid: int) -> str:
        sent.append(ti)
        both.wait(30)
        return token

    with pulse(send, every_s=0.0, parked="abcde"):
        assert enough.wait(30)
    assert pairs[:2] == [{"ti a", "ti b"}, {"ti c", "ti d"}]
    assert "ti e" in pairs[2]


def test_a_server_that_is_away_for_a_moment_changes_nothing() -> None:
    tries = []

    def send(_server: str, _token: str, _ti: str, _pid: int) -> str:
        tries.append(1)
        if len(tries) < 5:
            raise ConnectionError
        return "new"

    with pulse(send) as daemon:
        daemon.send(beat("a"))
        assert told(daemon) == {"t": "token", "id": "a", "token": "new"}


def test_supervisors_take_over_before_the_scheduler_gives_up() -> None:
    def send(_server: str, _token: str, _ti: str, _pid: int) -> str:
        raise ConnectionError

    with pulse(send, longest_s=0.1) as daemon:
        daemon.send(beat("a"))
        daemon.send(beat("b"))
        assert {told(daemon)["id"], told(daemon)["id"]} == {"a", "b"}


def test_a_task_that_has_a_supervisor_again_has_no_heartbeat_here() -> None:
    sent = []

    def send(_server: str, token: str, ti: str, _pid: int) -> str:
        sent.append(ti)
        return token + "."

    with pulse(send) as daemon:
        daemon.send(beat("a"))
        told(daemon)
        daemon.send({"t": "rest", "id": "a"})
        daemon.send(beat("b"))
        while told(daemon)["id"] != "b":
            pass
        count = sent.count("ti a")
        told(daemon)
        assert sent.count("ti a") == count


class Server(BaseHTTPRequestHandler):
    """An API server that answers as it is told to, and notes what it was asked."""

    status = 204
    asked: list[tuple[str, str, Any]]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.asked.append((self.path, self.headers["content-type"], json.loads(body)))
        self.send_response(self.status)
        self.send_header("content-type", "application/json")
        self.end_headers()
        if self.status != 204:
            self.wfile.write(b'{"detail": "no"}')

    def log_message(self, *args: object) -> None: ...


@contextmanager
def server(answer: int) -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """Its URL, and what it is asked."""
    asked: list[tuple[str, str, Any]] = []
    with HTTPServer(("127.0.0.1", 0), type("Handler", (Server,), {"status": answer, "asked": asked})) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/", asked
        finally:
            listening.shutdown()
            thread.join()


def test_a_heartbeat_is_one_that_the_api_server_understands() -> None:
    send, _, _ = internals.heartbeats()
    with server(204) as (url, asked):
        assert send(url, "token", "some-task", 7) == "token"
    ((path, kind, body),) = asked
    assert (path, kind, body["pid"]) == ("/task-instances/some-task/heartbeat", "application/json", 7)


@pytest.mark.parametrize("answer", [404, 409, 410])
def test_an_answer_that_is_about_the_task_is_a_refusal(answer: int) -> None:
    send, _, _ = internals.heartbeats()
    with server(answer) as (url, _), pytest.raises(Refused):
        send(url, "token", "some-task", 7)


def test_a_server_in_trouble_refuses_nothing() -> None:
    from airflow.sdk.api.client import ServerResponseError

    send, _, _ = internals.heartbeats()
    with server(503) as (url, _), pytest.raises(ServerResponseError):
        send(url, "token", "some-task", 7)
