"""The store service with real processes around it: others that put and read, kills, full disks, races."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest

from headrace.store.pickling import pack, unpack
from headrace.testing import wait_until
from headrace_airflow.store.client import Record, StoreClient
from headrace_airflow.store.errors import LostValueError, StoreFullError, StoreUnreachableError
from headrace_airflow.store.home import Home
from headrace_airflow.store.ledger import Slot
from headrace_airflow.store.service import StoreService
from headrace_airflow.store.settings import StoreSettings

MIB = 1 << 20
SLOT = Slot("dag", "run", "task", -1, "return_value")
OTHER = """
import sys
from headrace.store.pickling import pack, unpack
from headrace_airflow.store.client import StoreClient
from headrace_airflow.store.ledger import Slot
from headrace_airflow.store.settings import StoreSettings
client = StoreClient(StoreSettings.from_json(sys.stdin.readline()))
record = eval(sys.stdin.readline())
"""
"""How another process begins."""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[StoreSettings]:
    found = StoreSettings(str(tmp_path / "node"), str(tmp_path / "xcom"), str(tmp_path / "spill"), 256 * MIB)
    yield found
    with closing(StoreClient(found, starts=False)) as client:
        status = client.ask("status")
        if status is not None:
            client.ask("end")
            wait_until(lambda: not psutil.pid_exists(status["pid"]), "the service's end")


@pytest.fixture
def client(settings: StoreSettings) -> Iterator[StoreClient]:
    with closing(StoreClient(settings)) as found:
        yield found


def put(client: StoreClient, value: Any, slot: Slot = SLOT) -> Record:
    return client.put(slot, pack(value), type(value).__name__, "")


def get(client: StoreClient, record: Record) -> Any:
    data, *buffers = client.get(record)
    return unpack(data, buffers)


def status(client: StoreClient) -> dict[str, Any]:
    found = client.ask("status")
    assert found is not None
    return found


def other_process(settings: StoreSettings, record: Record | None, code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(f"{settings.to_json()}\n{record!r}\n")
    process.stdin.flush()
    return process


def elsewhere(settings: StoreSettings, record: Record | None, code: str) -> str:
    out, _ = other_process(settings, record, code).communicate(timeout=60)
    return out.strip()


def copies(settings: StoreSettings) -> list[Path]:
    return [path for path in Path(settings.url).rglob("*") if path.is_file()]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid), "the service's death")


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
    import hashlib

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


# Durability


def test_what_is_durable_outlives_the_service(settings: StoreSettings, client: StoreClient) -> None:
    value = os.urandom(3 * MIB)
    small, large = put(client, "small"), put(client, value, SLOT._replace(key="large"))
    client.ask("flush")
    assert len(copies(settings)) == 2
    kill(status(client)["pid"])
    assert get(client, large) == value
    assert get(client, small) == "small"
    assert {found["place"] for found in client.ask("list")["objects"]} == {"file"}, "mapped as they are"


def test_a_kill_right_after_a_put_loses_nothing(settings: StoreSettings, client: StoreClient) -> None:
    pid = status_after(client)["pid"]
    (helper,) = psutil.Process(pid).children()
    helper.suspend()
    value = os.urandom(3 * MIB)
    records = [put(client, value, SLOT._replace(key=str(n))) for n in range(3)]
    kill(pid)
    assert len(copies(settings)) == 1, "only the first, from before"
    reader = other_process(settings, records[2], "print(len(unpack(*client.get(record)[:1], client.get(record)[1:])))")
    wait_until(lambda: status(client)["jobs"] == 1 if client.ask("status") else False, "the next service's wait")
    helper.resume()
    assert reader.communicate(timeout=60)[0].strip() == str(3 * MIB)
    for record in records:
        assert get(client, record) == value


def status_after(client: StoreClient) -> dict[str, Any]:
    """The status of a service whose writer is at work already: starting one takes a moment."""
    put(client, "first", SLOT._replace(key="first"))
    client.ask("flush")
    return status(client)


def test_a_service_that_ends_writes_everything_first(settings: StoreSettings, client: StoreClient) -> None:
    value = os.urandom(50 * MIB)
    record = put(client, value)
    pid = status(client)["pid"]
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not psutil.pid_exists(pid), "the service's end")
    assert len(copies(settings)) == 1
    assert get(client, record) == value, "by another service"


def test_copies_behind_fsspec_come_back_into_memory(settings: StoreSettings) -> None:
    remote = replace(settings, url=f"local://{settings.url}")
    with closing(StoreClient(remote)) as client:
        value = os.urandom(2 * MIB)
        record = put(client, value)
        client.ask("flush")
        kill(status(client)["pid"])
        assert get(client, record) == value
        assert [found["place"] for found in client.ask("list")["objects"]] == ["memory"]
        assert status(client)["memory_bytes"] == record["bytes"]


def test_many_who_wait_for_one_copy_have_it_fetched_once(settings: StoreSettings, client: StoreClient) -> None:
    value = os.urandom(20 * MIB)
    record = put(client, value)
    client.ask("flush")
    kill(status(client)["pid"])
    code = "import hashlib; print(hashlib.sha256(client.get(record)[1]).hexdigest())"
    processes = [other_process(settings, record, code) for _ in range(4)]
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1
    (found,) = client.ask("list")["objects"]
    assert found["place"] == "file"


def test_a_lost_value_names_the_task_to_clear(settings: StoreSettings, client: StoreClient) -> None:
    record = put(client, "value", SLOT._replace(map_index=7))
    client.ask("flush")
    copies(settings)[0].unlink()
    assert get(client, record) == "value", "it is still in memory"
    kill(status(client)["pid"])
    with pytest.raises(LostValueError, match=r"Clear task 'task' \(map index 7\) of that run"):
        get(client, record)


def test_a_damaged_copy_is_an_error_that_says_so(settings: StoreSettings, client: StoreClient) -> None:
    record = put(client, bytearray(MIB))
    client.ask("flush")
    kill(status(client)["pid"])
    content = bytearray(copies(settings)[0].read_bytes())
    content[5000] ^= 1
    copies(settings)[0].write_bytes(content)
    with pytest.raises(LostValueError, match=r"checksum is wrong.*Clear task 'task'"):
        get(client, record)


def test_a_reference_to_a_strange_place_is_not_followed(settings: StoreSettings, client: StoreClient) -> None:
    record = put(client, "value")
    client.ask("flush")
    client.ask("end")
    client.close()
    moved = replace(settings, url=f"{settings.url}-new")
    with closing(StoreClient(moved)) as reader:
        with pytest.raises(LostValueError, match="xcom_former_paths"):
            get(reader, record)
        with pytest.raises(LostValueError, match="not under"):
            get(reader, {**record, "url": f"{moved.url}/../xcom/dag"})
    knowing = replace(moved, former_urls=(settings.url,))
    with closing(StoreClient(knowing)) as reader:
        assert get(reader, record) == "value"


# Lifetime


def test_a_deleted_value_goes_with_its_copy(settings: StoreSettings) -> None:
    with closing(StoreClient(replace(settings, grace_s=0.0))) as client:
        record = put(client, bytearray(MIB))
        client.ask("flush")
        client.delete(record)
        client.ask("flush")
        assert copies(settings) == []
        assert status(client)["objects"] == 0
        with pytest.raises(LostValueError):
            get(client, record)


def test_a_deleted_value_can_be_read_for_a_while(settings: StoreSettings, client: StoreClient) -> None:
    record = put(client, "value")
    client.delete(record)
    assert get(client, record) == "value"


def test_without_a_service_a_copy_is_deleted_and_none_is_started(settings: StoreSettings, client: StoreClient) -> None:
    record = put(client, "value")
    client.ask("flush")
    kill(status(client)["pid"])
    client.delete(record)
    assert copies(settings) == []
    assert client.ask("status") is None


def test_a_new_try_replaces_the_old_value(settings: StoreSettings) -> None:
    with closing(StoreClient(replace(settings, grace_s=0.0))) as client:
        put(client, "old")
        record = put(client, "new")
        wait_until(lambda: client.ask("flush") and len(copies(settings)) == 1, "the old copy's end")
        assert record["id"] in copies(settings)[0].name


def test_a_value_that_is_read_keeps_its_memory_after_its_deletion(settings: StoreSettings) -> None:
    with closing(StoreClient(replace(settings, grace_s=0.0))) as client:
        value = os.urandom(4 * MIB)
        record = put(client, value)
        parts = client.get(record)
        client.delete(record)
        for n in range(3):
            put(client, bytearray(4 * MIB), SLOT._replace(key=str(n)))
        assert parts[1] == value


def test_memory_is_used_again_once_nobody_maps_it(settings: StoreSettings) -> None:
    with closing(StoreClient(replace(settings, grace_s=0.0))) as client:
        record = put(client, bytearray(4 * MIB))
        client.ask("flush")
        client.delete(record)
        assert status(client)["pool_bytes"] >= 4 * MIB
        value = os.urandom(4 * MIB)
        record = put(client, value)
        assert status(client)["pool_bytes"] == 0
        assert get(client, record) == value


def test_a_service_that_nobody_needs_ends(settings: StoreSettings) -> None:
    with closing(StoreClient(replace(settings, idle_s=0.2))) as client:
        put(client, "value")
        pid = status(client)["pid"]
    wait_until(lambda: not psutil.pid_exists(pid), "the idle service's end")
    assert len(copies(settings)) == 1


# Not enough room


def test_what_does_not_fit_into_memory_is_spilled(settings: StoreSettings) -> None:
    with closing(StoreClient(replace(settings, budget_bytes=4 * MIB))) as client:
        value = os.urandom(10 * MIB)
        record = put(client, value)
        found = status(client)
        assert found["memory_bytes"] == 0
        assert found["spilled_bytes"] == record["bytes"]
        assert get(client, record) == value
        client.ask("flush")
        assert len(copies(settings)) == 1, "it has a durable copy like any other"


def test_under_pressure_only_the_copy_stays(settings: StoreSettings) -> None:
    with closing(StoreClient(replace(settings, budget_bytes=10 * MIB))) as client:
        values = {str(n): os.urandom(4 * MIB) for n in range(4)}
        records = {}
        for key, value in values.items():
            records[key] = put(client, value, SLOT._replace(key=key))
            client.ask("flush")
        places = {found["slot"][-1]: found["place"] for found in client.ask("list")["objects"]}
        assert places == {"0": "away", "1": "away", "2": "memory", "3": "memory"}
        assert all(get(client, records[key]) == value for key, value in values.items())


def test_a_full_disk_leaves_values_in_memory_and_is_reported(settings: StoreSettings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "spill")
    with closing(StoreClient(replace(settings, budget_bytes=8 * MIB, spill=nowhere))) as client:
        (helper,) = psutil.Process(status_after(client)["pid"]).children()
        resource.prlimit(helper.pid, resource.RLIMIT_FSIZE, (MIB, MIB))
        value = os.urandom(5 * MIB)
        record = put(client, value)
        client.ask("flush")
        found = status(client)
        assert found["failed"] == found["undurable"] == 1
        assert "File too large" in found["reasons"][0]
        assert get(client, record) == value
        with pytest.raises(StoreFullError, match=r"no room for .* xcom_memory"):
            put(client, bytearray(5 * MIB), SLOT._replace(key="other"))
        assert get(client, record) == value
        client.ask("end")
    wait_until(lambda: "lost: " in Home(settings.home).log.read_text(), "the last words")


def test_an_unreachable_place_is_tried_again(settings: StoreSettings, client: StoreClient) -> None:
    Path(settings.url).write_text("a file where a folder should be")
    record = put(client, "value")
    client.ask("flush")
    assert status(client)["failed"] == 1
    assert get(client, record) == "value"
    Path(settings.url).unlink()
    wait_until(lambda: status(client)["undurable"] == 0, "the second attempt")
    assert len(copies(settings)) == 1


@pytest.mark.parametrize("left", range(5))
def test_a_store_that_has_no_descriptor_left_refuses_and_goes_on(client: StoreClient, left: int) -> None:
    kept = put(client, bytearray(MIB), SLOT._replace(key="kept"))
    client.ask("flush")
    pid = status(client)["pid"]
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = 1 + max(map(int, os.listdir(f"/proc/{pid}/fd")))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (taken + left, limits[1]))
    with contextlib.suppress(StoreFullError, StoreUnreachableError):
        put(client, bytearray(MIB), SLOT._replace(key="other"))
    with contextlib.suppress(StoreUnreachableError):
        get(client, kept)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    other = put(client, bytearray(MIB), SLOT._replace(key="other"))
    assert get(client, kept) == get(client, other) == bytearray(MIB)
    assert status(client)["pid"] == pid
    wait_until(lambda: status(client)["undurable"] == 0, "its durable copy")


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
    service = StoreService(settings)
    stop, stopped = os.pipe()
    done = threading.Thread(target=host, args=(service, stop))
    done.start()
    try:
        with closing(StoreClient(settings, starts=False)) as client:
            value = os.urandom(2 * MIB)
            record = put(client, value)
            assert get(client, record) == value
            assert status(client)["pid"] == os.getpid()
    finally:
        os.close(stopped)
        done.join()
        os.close(stop)
    assert len(copies(settings)) == 1


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
