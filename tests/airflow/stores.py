"""A store of a test's own: where it is, values put into it and read from it, here and in other processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from headrace.store.pickling import pack, unpack
from headrace.testing import wait_until
from headrace_airflow.bench.processes import has_ended
from headrace_airflow.store.client import Record, StoreClient
from headrace_airflow.store.ledger import Slot
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


@contextmanager
def own_store(folder: Path) -> Iterator[StoreSettings]:
    """The settings of a store below a folder; if somebody starts its service, that ends with the context."""
    found = StoreSettings(str(folder / "node"), str(folder / "xcom"), str(folder / "spill"), 256 * MIB)
    yield found
    with closing(StoreClient(found, starts=False)) as client:
        status = client.ask("status")
        if status is not None:
            client.ask("end")
            wait_until(lambda: has_ended(status["pid"]), "the service's end")


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
    wait_until(lambda: has_ended(pid), "the service's death")


def status_after(client: StoreClient) -> dict[str, Any]:
    """The status of a service whose writer is at work already: starting one takes a moment."""
    put(client, "first", SLOT._replace(key="first"))
    client.ask("flush")
    return status(client)
