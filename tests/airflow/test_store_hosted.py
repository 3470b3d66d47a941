"""The store inside the daemon's loop, and what becomes of it when there are others, errors, or an end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest
from stores import MIB, SLOT, copies, get, put

from headrace.testing import wait_until
from headrace_airflow.hosted_store import HostedStore
from headrace_airflow.loop import Loop
from headrace_airflow.store.client import StoreClient, start_service
from headrace_airflow.store.service import StoreService
from headrace_airflow.store.settings import StoreSettings

TICK_S = 0.05


class Host:
    """What the daemon does with it: turns its loop, looks, ticks."""

    def __init__(self, settings: StoreSettings) -> None:
        self.words: list[str] = []
        self._stop_read, self._stop_write = os.pipe()
        self._loop = Loop()
        self._stopping = False
        self._loop.watch(self._stop_read, self._stop)
        self.store = HostedStore(settings.to_json(), self._loop, self.words.append)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _stop(self) -> None:
        self._loop.unwatch(self._stop_read)
        self._stopping = True

    def _run(self) -> None:
        while not self._stopping:
            self._loop.turn(min(TICK_S, self.store.timeout_s()))
            self.store.look()
            self.store.host()
        self.store.finish()

    def end(self) -> None:
        os.write(self._stop_write, b"!")
        self._thread.join()
        os.close(self._stop_read)
        os.close(self._stop_write)


@contextmanager
def hosting(settings: StoreSettings) -> Iterator[Host]:
    host = Host(settings)
    try:
        yield host
    finally:
        host.end()


@pytest.fixture
def settings(tmp_path: Path) -> StoreSettings:
    return StoreSettings(str(tmp_path / "node"), str(tmp_path / "xcom"), str(tmp_path / "spill"), 64 * MIB)


@pytest.fixture
def client(settings: StoreSettings) -> Iterator[StoreClient]:
    with closing(StoreClient(settings, starts=False)) as found:
        yield found


def serving_pid(client: StoreClient) -> int:
    status = client.ask("status")
    return status["pid"] if status is not None else 0


def test_tasks_find_the_daemons_store(settings: StoreSettings, client: StoreClient) -> None:
    with hosting(settings) as host:
        record = put(client, bytearray(4 * MIB))
        assert serving_pid(client) == os.getpid()
        assert get(client, record) == bytearray(4 * MIB)
        assert host.store.io_pids() == {child.pid for child in psutil.Process().children()} != set()
        assert host.store.lasting_pids() == host.store.io_pids()
    assert host.words == []


def test_an_end_waits_for_every_durable_copy(settings: StoreSettings, client: StoreClient) -> None:
    with hosting(settings):
        records = [put(client, bytearray(4 * MIB), SLOT._replace(key=str(n))) for n in range(4)]
    assert len(copies(settings)) == len(records)


def test_a_store_at_work_is_left_alone_and_the_next_one_is_hosted(settings: StoreSettings, client: StoreClient) -> None:
    start_service(settings)
    other = serving_pid(client)
    with hosting(settings) as host:
        record = put(client, b"value" * MIB)
        assert serving_pid(client) == other != os.getpid()
        assert host.store.lasting_pids() == {other}
        assert host.store.io_pids() == set()
        client.ask("end")
        wait_until(lambda: serving_pid(client) == os.getpid(), "the daemon's turn")
        assert get(client, record) == b"value" * MIB
    assert host.words == []


def test_of_two_daemons_one_hosts_and_the_other_comes_after_it(settings: StoreSettings, client: StoreClient) -> None:
    first, second = Host(settings), Host(settings)
    try:
        record = put(client, b"value" * MIB)
        assert first.store.timeout_s() < float("inf")
        assert second.store.timeout_s() == float("inf")
        first.end()
        wait_until(lambda: second.store.timeout_s() < float("inf"), "the other's turn")
        assert get(client, record) == b"value" * MIB
    finally:
        second.end()


def test_a_store_that_was_told_to_end_begins_afresh(settings: StoreSettings, client: StoreClient) -> None:
    with hosting(settings):
        record = put(client, b"value" * MIB)
        client.ask("end")
        wait_until(lambda: serving_pid(client) == os.getpid(), "the next one")
        assert get(client, record) == b"value" * MIB


def test_an_error_of_the_store_ends_no_daemon(
    settings: StoreSettings, client: StoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hosting(settings) as host:
        record = put(client, b"value")
        client.ask("flush")
        with monkeypatch.context() as broken:
            broken.setattr(StoreService, "status", lambda self: {}["broken"])
            broken.setattr(StoreService, "_answer", lambda self, client, message: self.status())
            assert client.ask("status") is None
        wait_until(lambda: serving_pid(client) == os.getpid(), "the next one")
        assert get(client, record) == b"value"
    assert "KeyError: 'broken'" in host.words[0]


def test_a_place_that_cannot_be_used_is_said_once(settings: StoreSettings, tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    with hosting(settings) as host:
        host.store.host()
        assert host.store.timeout_s() == float("inf")
    assert len(host.words) == 1
    assert host.words[0].startswith("the store is not hosted here: ")


ADOPTER = """
import os, sys
from headrace_airflow import processes
processes.adopt_orphans()
own = os.spawnlp(os.P_NOWAIT, "true", "true")
read, write = os.pipe()
if not os.fork():
    os.write(write, b"%d" % os.spawnlp(os.P_NOWAIT, "true", "true"))
    os._exit(0)
print(own, os.read(read, 20).decode(), flush=True)
sys.stdin.readline()
processes.reap_adopted({own})
print(*processes._children(()))
"""


def test_orphans_that_have_ended_are_reaped_and_others_left_to_their_owners() -> None:
    command = [sys.executable, "-c", ADOPTER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        own, orphan = map(int, process.stdout.readline().split())
        wait_until(lambda: is_zombie(own) and is_zombie(orphan), "two zombies")
        out, _ = process.communicate("\n", timeout=60)
    assert out.split() == [str(own)]


def is_zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
