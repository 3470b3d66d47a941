"""What the executor writes into the logs of workloads that nobody else can speak for."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState

from headrace_airflow import HeadraceExecutor, wire
from headrace_airflow.wire import Channel

GONE = "The Headrace daemon ended, and the task with it"
KEY = TaskInstanceKey("dag", "task", "run", 1, -1)


class Scheduler:
    """An executor, and the daemon's end of its connection."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        ours, theirs = wire.pair()
        self.daemon = Channel(theirs)
        self.executor = HeadraceExecutor(parallelism=4)
        self.executor._daemon = ours
        self.executor._idle_sleep_s = 0.0  # it waits for nothing
        self.executor._looked_at = float("inf")  # and asks no database

    def submit(self) -> str:
        """A workload that the daemon has."""
        workload: Any = SimpleNamespace(display_name="one", model_dump=lambda mode: {"log_path": "one.log"})
        self.executor._submit(KEY, workload)
        received = self.daemon.wait(30.0)
        assert received is not None
        submission: str = received[0]["id"]
        return submission

    def lose_daemon(self) -> None:
        self.daemon.close()
        self.executor.sync()

    def log(self) -> list[str]:
        """What has been written into the workload's log."""
        path = self._logs / "one.log"
        return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scheduler]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))
    made = Scheduler(tmp_path / "logs")
    yield made
    made.executor.terminate()
    made.daemon.close()


def test_a_task_that_ran_when_the_daemon_was_lost(scheduler: Scheduler) -> None:
    scheduler.daemon.send({"t": "started", "id": scheduler.submit()})
    scheduler.executor.sync()
    assert scheduler.log() == []
    scheduler.lose_daemon()
    assert scheduler.log() == [GONE]
    assert scheduler.executor.get_event_buffer()[KEY] == (TaskInstanceState.FAILED, GONE)


def test_a_task_that_had_not_started_waits_for_the_next_daemon(scheduler: Scheduler) -> None:
    scheduler.submit()
    scheduler.lose_daemon()
    assert scheduler.log() == []


def test_a_task_that_came_from_another_scheduler(scheduler: Scheduler) -> None:
    ti: Any = SimpleNamespace(external_executor_id="one", key=KEY)

    def answer() -> None:
        received = scheduler.daemon.wait(30.0)
        assert received is not None
        scheduler.daemon.send({"t": "adopted", "ids": received[0]["ids"], "log_paths": {"one": "one.log"}})

    thread = threading.Thread(target=answer)
    thread.start()
    assert scheduler.executor.try_adopt_task_instances([ti]) == []
    thread.join()
    scheduler.lose_daemon()
    assert scheduler.log() == [GONE]


@pytest.mark.parametrize(("more", "written"), [({"log_path": "one.log"}, ["reason"]), ({}, [])])
def test_what_the_daemon_says_where_it_says_so(scheduler: Scheduler, more: Any, written: list[str]) -> None:
    """Where no path comes along, a supervisor has written it already."""
    scheduler.daemon.send({"t": "ended", "id": scheduler.submit(), "ok": False, "info": "reason", **more})
    scheduler.executor.sync()
    assert scheduler.log() == written


def test_nothing_is_kept_of_what_has_ended(scheduler: Scheduler) -> None:
    scheduler.daemon.send({"t": "ended", "id": scheduler.submit(), "ok": True})
    scheduler.executor.sync()
    assert scheduler.executor._log_paths == {}
