"""How long the store has values: durable copies, deletion, spilling, full disks, and what is lost after all."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from stores import MIB, SLOT, copies, get, kill, other_process, put, status, status_after

from headrace.testing import wait_until
from headrace_airflow.bench.processes import has_ended
from headrace_airflow.store.client import StoreClient
from headrace_airflow.store.errors import LostValueError, StoreFullError, StoreUnreachableError
from headrace_airflow.store.home import Home
from headrace_airflow.store.settings import StoreSettings

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


def test_a_service_that_ends_writes_everything_first(settings: StoreSettings, client: StoreClient) -> None:
    value = os.urandom(50 * MIB)
    record = put(client, value)
    pid = status(client)["pid"]
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: has_ended(pid), "the service's end")
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


def test_a_value_that_is_shorter_than_its_reference_says_is_lost(client: StoreClient) -> None:
    record = put(client, bytearray(MIB))
    with pytest.raises(LostValueError, match=rf"of {4 * MIB} bytes.*Clear task 'task'"):
        get(client, {**record, "bytes": 4 * MIB})


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
    wait_until(lambda: has_ended(pid), "the idle service's end")
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
