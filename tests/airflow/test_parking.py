"""Heartbeats for parked tasks: one after another, and what is done when the API server does not answer as it should."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace_airflow import wire
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
