"""Heartbeats for parked tasks: one after another, and what is done when the API server does not answer as it should."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from headrace_airflow import internals, wire
from headrace_airflow.internals import Refused
from headrace_airflow.pulse import Pulse
from headrace_airflow.wire import Channel, Message

Send = Callable[[str, str, str, int], str]


@contextmanager
def pulse(send: Send, longest_s: float = 3600.0) -> Iterator[Channel]:
    """A pulse that sends often; the daemon's end of the connection to it."""
    ours, theirs = wire.pair()
    thread = threading.Thread(target=Pulse(Channel(theirs), send, 0.01, longest_s).run)
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
