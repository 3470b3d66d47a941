"""What looks for deleted values now and then: one process at a time, as long as the scheduler lives; what rows keep."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.testing import wait_until
from headrace_airflow.collector import Collector
from headrace_airflow.xcom_admin import ids_in
from headrace_airflow.xcom_reference import CLASSNAME, PARTS_CLASSNAME


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def turns(collector: Collector, log: Path) -> int:
    collector.look()
    return log.read_text().count("turn") if log.exists() else 0


def test_it_runs_again_and_again(tmp_path: Path) -> None:
    collector = Collector(0.01, tmp_path / "log", ("echo", "turn"))
    wait_until(lambda: turns(collector, tmp_path / "log") >= 3, "three turns")
    collector.close()
    assert psutil.Process().children() == []


def test_one_that_takes_long_is_not_joined_by_another_and_ends_with_the_scheduler(tmp_path: Path) -> None:
    collector = Collector(0.01, tmp_path / "log", ("sleep", "600"))
    wait_until(lambda: collector.look() or children(), "the first")
    until_s = time.monotonic() + 0.1
    while time.monotonic() < until_s:  # long enough for ten more
        collector.look()
        assert len(children()) == 1
    collector.close()
    assert psutil.Process().children() == []


def test_it_may_be_switched_off(tmp_path: Path) -> None:
    collector = Collector(0.0, tmp_path / "log", ("echo", "turn"))
    assert turns(collector, tmp_path / "log") == 0
    collector.close()


def test_one_that_cannot_be_started_is_left_for_the_next_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector(0.01, tmp_path / "log", (str(tmp_path / "turn"),))
    wait_until(lambda: turns(collector, tmp_path / "log") or caplog.messages, "a first attempt")
    assert "are not looked for now" in caplog.messages[0]
    (tmp_path / "turn").write_text("#!/bin/sh\necho turn\n")
    (tmp_path / "turn").chmod(0o700)
    wait_until(lambda: turns(collector, tmp_path / "log"), "a turn")
    collector.close()


@pytest.mark.parametrize("data", [None, {}, "id"], ids=repr)
def test_a_damaged_row_keeps_nothing_and_stops_nobody(data: Any) -> None:
    reference = {"__classname__": CLASSNAME, "__version__": 1, "__data__": {"id": "kept"}}
    parts = {"one": {**reference, "__data__": data}, "other": reference, "plain": 1}
    assert ids_in({"__classname__": PARTS_CLASSNAME, "__version__": 1, "__data__": parts}) == {"kept"}
    assert ids_in({"__classname__": PARTS_CLASSNAME, "__version__": 1, "__data__": data}) == set()
