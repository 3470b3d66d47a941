"""The store service with real processes around it: others that put and read, kills, requests cut short, races."""

from __future__ import annotations

import hashlib
import os
import selectors
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import psutil
import pytest
from stores import MIB, SLOT, copies, elsewhere, get, other_process, put, status

from headrace.testing import wait_until
from headrace_airflow.store import storage
from headrace_airflow.store.client import StoreClient
from headrace_airflow.store.errors import LostValueError, StoreUnreachableError
from headrace_airflow.store.home import Home
from headrace_airflow.store.service import StoreService
from headrace_airflow.store.settings import StoreSettings

# Values


@pytest.mark.parametrize("size", [0, 100, 20_000, 33_000, 70_000, 5 * MIB])
def test_values_of_any_size_come_back_here_and_elsewhere(
    settings: StoreSettings, client: StoreClient, size: int
) -> None:
    value = [os.urandom(size), "text"]
    record = put(client, value)
    assert get(client, record) == value
    code = "data, *buffers = client.get(record); print(hash_of(unpack(data, buffers)))"
    digest = "import hashlib; hash_of = lambda value: hashlib.sha256(value[0]).hexdigest()\n"
    assert elsewhere(settings, record, digest + code) == hashlib.sha256(value[0]).hexdigest()


def test_readers_stand_on_the_stores_own_pages_and_write_only_into_copies(client: StoreClient) -> None:
    value = bytearray(os.urandom(4 * MIB))
    record = put(client, value)
    first, second = client.get(record), client.get(record)
    assert any("headrace-xcom" in line for line in Path("/proc/self/maps").read_text().splitlines())
    first[1][:4] = b"mine"
    assert second[1] == value
    assert client.get(record)[1] == value


def test_the_size_of_shared_memory_does_not_matter(client: StoreClient) -> None:
    free = os.statvfs("/dev/shm").f_bfree
    record = put(client, bytearray(80 * MIB))
    used = (free - os.statvfs("/dev/shm").f_bfree) * os.statvfs("/dev/shm").f_bsize
    assert used < 16 * MIB, "somebody else may use it at the same time, but not for 80 MiB"
    assert len(get(client, record)) == 80 * MIB


def test_a_value_of_many_buffers_comes_back(client: StoreClient) -> None:
    value = [bytearray(os.urandom(5000)) for _ in range(3000)]
    assert get(client, put(client, value)) == value


# Processes


def test_of_many_that_start_at_once_one_serves(settings: StoreSettings) -> None:
    code = """
record = client.put(Slot("d", "r", "t", int(sys.argv[1]) if len(sys.argv) > 1 else -1, "k"), pack([1] * 99), "", "")
print(client.ask("status")["pid"])
"""
    processes = [other_process(settings, None, code.replace('"k"', f'"k{n}"')) for n in range(5)]
    pids = {process.communicate(timeout=60)[0] for process in processes}
    assert len(pids) == 1
    with closing(StoreClient(settings, starts=False)) as client:
        assert len(client.ask("list")["objects"]) == 5


def test_a_second_service_in_the_same_place_is_refused(settings: StoreSettings, client: StoreClient) -> None:
    put(client, "value")
    with pytest.raises(StoreUnreachableError, match="at work already"):
        StoreService(settings)


def test_a_forked_child_has_its_own_connection(settings: StoreSettings, client: StoreClient) -> None:
    record = put(client, bytearray(b"x" * MIB))
    parts = client.get(record)
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            good = get(client, record) == parts[1] and status(client)["clients"] == 2
            os.write(theirs, b"y" if good else b"n")
        finally:
            os._exit(0)  # whatever was raised: it must not go on with the other tests
    os.waitpid(child, 0)
    os.close(theirs)
    assert os.read(ours, 1) == b"y"
    os.close(ours)
    assert get(client, record) == parts[1]


def test_a_request_that_a_signal_cuts_short_does_not_spoil_the_next(client: StoreClient) -> None:
    first, second = put(client, "first"), put(client, "second", SLOT._replace(key="second"))
    service = psutil.Process(status(client)["pid"])

    def time_is_over(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("as execution_timeout does it")

    before = signal.signal(signal.SIGALRM, time_is_over)
    service.suspend()
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(TimeoutError):
            get(client, first)
    finally:
        service.resume()
        signal.signal(signal.SIGALRM, before)
    assert get(client, second) == "second"


def test_what_a_dead_task_reserved_is_given_back(settings: StoreSettings, client: StoreClient) -> None:
    put(client, "value")
    code = """
answer, fd = client._ask({"op": "reserve", "size": 100 << 20})
print(client.ask("status")["memory_bytes"] >= 100 << 20)
"""
    assert elsewhere(settings, None, code) == "True"
    wait_until(lambda: status(client)["memory_bytes"] < MIB, "the reservation's end")


def test_nobody_else_can_enter(settings: StoreSettings, client: StoreClient) -> None:
    put(client, "value")
    home = Home(settings.home).path
    assert home.stat().st_mode & 0o077 == 0
    home.chmod(0o755)
    Home(settings.home)
    assert home.stat().st_mode & 0o077 == 0


@contextmanager
def shut(folder: Path) -> Iterator[None]:
    """Has a folder be one that this user may not enter; root enters all, but does not trust another one's."""
    if os.geteuid() == 0:
        os.chown(folder, 65534, -1)
    else:
        folder.chmod(0)
    try:
        yield
    finally:
        os.chown(folder, os.geteuid(), -1)
        folder.chmod(0o700)


def test_who_may_not_enter_writes_and_reads_durable_copies(settings: StoreSettings, client: StoreClient) -> None:
    value = os.urandom(2 * MIB)
    small, large = put(client, "small"), put(client, value, SLOT._replace(key="large"))
    client.ask("flush")
    with shut(Home(settings.home).path), closing(StoreClient(settings)) as outside:
        assert (get(outside, small), get(outside, large)) == ("small", value)
        mine = put(outside, value, SLOT._replace(key="mine"))
    assert get(client, mine) == value


@pytest.mark.parametrize(("damage", "why"), [(b"", "is damaged"), (None, "no durable copy")], ids=["cut", "gone"])
def test_who_may_not_enter_is_told_what_is_lost(
    settings: StoreSettings, client: StoreClient, damage: bytes | None, why: str
) -> None:
    record = put(client, "value")
    client.ask("flush")
    (copy,) = copies(settings)
    copy.unlink()
    if damage is not None:
        copy.write_bytes(damage)
    lost = pytest.raises(LostValueError, match=rf"{why}.*Clear task 'task'")
    with shut(Home(settings.home).path), closing(StoreClient(settings)) as outside, lost:
        get(outside, record)


def test_a_broken_request_harms_nobody(settings: StoreSettings, client: StoreClient) -> None:
    record = put(client, "value")
    for broken in (
        {"op": "no such"},
        {"op": "get", "record": {}},
        {"op": "reserve"},
        {},
        {"op": "commit", "record": 3},
    ):
        with pytest.raises(StoreUnreachableError, match="refused"):
            client._ask(broken)
    assert get(client, record) == "value"


def test_a_daemon_can_host_it_in_its_own_loop(settings: StoreSettings) -> None:
    with hosted(settings) as client:
        value = os.urandom(2 * MIB)
        record = put(client, value)
        assert get(client, record) == value
        assert status(client)["pid"] == os.getpid()
    assert len(copies(settings)) == 1


class TestTimeToLive:
    @pytest.fixture(autouse=True)
    def looks_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("service._SOON_S", "service._LATER_S", "contents._SWEEP_FIRST_S", "contents._SWEEP_EVERY_S"):
            monkeypatch.setattr(f"headrace_airflow.store.{name}", 0.05)

    def test_ends_for_a_run_that_nobody_has_touched(self, settings: StoreSettings) -> None:
        with hosted(replace(settings, ttl_s=0.5)) as client:
            record = put(client, "value")
            wait_until(lambda: not client.ask("list")["objects"] and not Path(record["url"]).exists())
            with pytest.raises(LostValueError):
                get(client, record)

    def test_ends_for_copies_that_this_service_has_never_heard_of(self, settings: StoreSettings) -> None:
        earlier = storage.url_of(settings.url, SLOT._replace(run_id="earlier"), "i" * 32)
        storage.write(earlier, {}, b"", 0, {})
        with hosted(settings) as client:
            record = put(client, "value")
            client.ask("flush")
            for copy in copies(settings):
                os.utime(copy, (1, 1))
            wait_until(lambda: not Path(earlier).exists())
            assert get(client, record) == "value"
        assert len(copies(settings)) == 1, "its run is in use, old as it looks"


@contextmanager
def hosted(settings: StoreSettings) -> Iterator[StoreClient]:
    """A client of a service in a thread of this process."""
    found = StoreService(settings)
    stop, stopped = os.pipe()
    done = threading.Thread(target=host, args=(found, stop))
    done.start()
    try:
        with closing(StoreClient(settings, starts=False)) as client:
            yield client
    finally:
        os.close(stopped)
        done.join()
        os.close(stop)


def host(service: StoreService, stop: int) -> None:
    """What a daemon does that has other things in its selector too."""
    selector = selectors.DefaultSelector()
    selector.register(service, selectors.EVENT_READ, service.handle)
    selector.register(stop, selectors.EVENT_READ, None)
    ready: list[Callable[[], None] | None] = []
    while None not in ready:
        ready = [key.data for key, _ in selector.select(service.timeout_s())]
        service.handle()
    selector.close()
    assert service.finish() == []
