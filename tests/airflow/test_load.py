"""How busy tasks are: process groups as /proc shows them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from headrace_airflow.load import Load

BUSY = "while True: pass"


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) as process:
        yield process
        process.kill()


def test_a_group_is_measured_from_the_second_look_on(busy: subprocess.Popen[bytes]) -> None:
    load = Load()
    assert load.measure({busy.pid}) == {}
    used = 0.0
    while used == 0.0:  # until the kernel has given it some of a core
        time.sleep(0.05)  # the kernel counts in ticks of 10 ms: after less, one would look like several cores
        used = load.measure({busy.pid})[busy.pid]
    assert 0.0 < used < 2.0


def test_a_group_that_has_ended_uses_nothing(busy: subprocess.Popen[bytes]) -> None:
    busy.kill()
    busy.wait()
    assert Load().measure({busy.pid}) == {busy.pid: 0.0}
