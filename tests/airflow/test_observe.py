"""What observers are told of peers that do not answer."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from airflow.configuration import conf

from headrace_airflow import HeadraceExecutor, client, observe, places, xcom
from headrace_airflow.store.home import Home
from headrace_airflow.store.settings import StoreSettings
from headrace_airflow.wire import Channel, Message

WELCOME = {"t": "welcome", "ends": False}


@pytest.fixture
def teams(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str | None]:
    """Those that have an executor here."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = [None, "blue", "green"]
    executors = [HeadraceExecutor(parallelism=4, team_name=team) for team in found]
    monkeypatch.setattr(observe, "_executors", lambda: executors)
    return found


@pytest.fixture
def listeners(teams: list[str | None]) -> Iterator[list[socket.socket]]:
    """Where the daemons of these teams would listen."""
    with ExitStack() as opened:
        found = []
        for executor in observe._executors():
            listener = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(places.socket_path(executor.place)))
            listener.listen()
            found.append(listener)
        yield found


def serve(channel: Channel, answers: list[Message]) -> None:
    for answer in answers:
        channel.wait()
        channel.send(answer)
    channel.wait()
    channel.close()


def fill_queue_at(address: str) -> None:
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            sock.connect(address)


class TestDaemons:
    def test_all_are_asked_at_the_same_time(
        self, listeners: list[socket.socket], teams: list[str | None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(observe, "_TIMEOUT_S", 10.0)

        def answer_when_all_have_come() -> None:
            channels = [Channel(listener.accept()[0]) for listener in listeners]
            for number, channel in enumerate(channels):
                serve(channel, [WELCOME, {"t": "status", "pid": number}])

        answering = threading.Thread(target=answer_when_all_have_come)
        answering.start()
        found = observe.daemons()
        answering.join()
        assert [(daemon.team, daemon.state) for daemon in found] == [(team, "running") for team in teams]
        assert [daemon.status and daemon.status["pid"] for daemon in found] == [0, 1, 2]

    def test_one_that_does_not_answer_is_silent(
        self, listeners: list[socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(observe, "_TIMEOUT_S", 0.2)
        deaf, mute, _ = listeners
        locks = [places.take_lock(Path(listener.getsockname()).parent) for listener in (deaf, mute)]
        welcoming = threading.Thread(target=lambda: serve(Channel(mute.accept()[0]), [WELCOME]))
        welcoming.start()
        found = observe.daemons()
        welcoming.join()
        for lock in locks:
            assert lock is not None
            os.close(lock)
        assert [(daemon.state, daemon.status) for daemon in found] == [
            ("silent", None), ("silent", None), ("absent", None),
        ]  # fmt: skip

    def test_one_that_accepts_nobody_any_more_does_not_block(self, listeners: list[socket.socket]) -> None:
        address = listeners[0].getsockname()
        with pytest.raises(BlockingIOError):
            fill_queue_at(address)
        assert client.connect(Path(address).parent, "observer") is None

    def test_nobody_is_asked_where_there_is_no_executor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(observe, "_executors", list)
        assert observe.daemons() == []


def fill_queue(home: Home) -> None:
    while (connected := home.connect(waits=False)) is not None:
        connected.close()


class TestStore:
    def test_one_that_accepts_nobody_is_silent(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(conf, "getimport", lambda *_: xcom.HeadraceXCom)
        monkeypatch.setattr(xcom, "settings", lambda: StoreSettings(str(tmp_path), "", "", 0))
        home = Home(str(tmp_path))
        with home.listen():
            with pytest.raises(BlockingIOError):
                fill_queue(home)
            found = observe.store()
        assert found is not None
        assert (found.state, found.status, found.runs) == ("silent", None, [])
