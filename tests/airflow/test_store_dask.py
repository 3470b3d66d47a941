"""A dask collection that Headrace has persisted, passed from task to task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dask.array as da
import pytest
from numpy import ndarray

import headrace_dask
from headrace.store.pickling import pack, unpack
from headrace.testing import wait_until
from headrace_airflow.bench.processes import has_ended
from headrace_airflow.store.client import StoreClient
from headrace_airflow.store.ledger import Slot
from headrace_airflow.store.settings import StoreSettings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[StoreClient]:
    settings = StoreSettings(str(tmp_path / "node"), str(tmp_path / "xcom"), str(tmp_path / "spill"), 1 << 30)
    with closing(StoreClient(settings)) as found:
        yield found
        status = found.ask("status")
        found.ask("end")
    assert status is not None
    wait_until(lambda: has_ended(status["pid"]), "the service's end")


@pytest.mark.shares_runtime
def test_a_persisted_collection_is_copied_once_and_read_in_place(client: StoreClient) -> None:
    collection = da.random.default_rng(0).random((2000, 1000), chunks=(500, 1000)).persist(scheduler=headrace_dask.get)
    record = client.put(Slot("dag", "run", "task", -1, "key"), pack(collection), "dask.array", "")
    assert collection.nbytes < record["bytes"] < 1.02 * collection.nbytes
    data, *buffers = client.get(record)
    found = unpack(data, buffers)
    values = [getattr(node, "value", None) for node in found.__dask_graph__().values()]
    blocks = [value for value in values if isinstance(value, ndarray)]
    assert len(blocks) == 4
    assert all(is_of_store(block.__array_interface__["data"][0]) for block in blocks)
    assert bool((found == collection).all().compute(scheduler=headrace_dask.get))


def is_of_store(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split()[0].partition("-")
        if int(first, 16) <= address < int(last, 16):
            return "headrace-xcom" in line
    return False
