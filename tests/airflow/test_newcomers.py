"""Runs that are asked for while the scheduler rests: how they are found, and that the executor rests no longer then."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy
from airflow import settings
from airflow.executors.executor_loader import ExecutorLoader
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session

from headrace_airflow import HeadraceExecutor, internals, wire
from headrace_airflow.newcomers import Newcomers

FIRST = datetime(2026, 1, 1, tzinfo=timezone.utc)
SECOND = FIRST + timedelta(seconds=1)


class TestNewcomers:
    @pytest.mark.parametrize(
        ("newest", "told"),
        [
            ([None, None], [False, False]),
            ([FIRST, FIRST], [True, False]),
            ([FIRST, SECOND, SECOND], [True, True, False]),
            ([SECOND, FIRST, FIRST], [True, False, False]),
            ([FIRST, None, FIRST], [True, False, True]),
        ],
    )
    def test_are_told_of_once(
        self, monkeypatch: pytest.MonkeyPatch, newest: list[datetime | None], told: list[bool]
    ) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: 0.0)  # a look takes no time
        answers = iter(newest)
        newcomers = Newcomers(lambda: next(answers), every_s=0.0)
        assert [newcomers.have_come() for _ in newest] == told

    def test_are_looked_for_now_and_then(self) -> None:
        looks = []
        newcomers = Newcomers(lambda: looks.append(1), every_s=3600.0)
        assert [newcomers.have_come() for _ in range(3)] == [False] * 3
        assert len(looks) == 1

    def test_are_looked_for_a_tenth_of_the_time_at_most(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0
        looks = []

        def slow() -> None:
            nonlocal now
            looks.append(now)
            now += 1.0

        monkeypatch.setattr(time, "monotonic", lambda: now)
        newcomers = Newcomers(slow)
        for seconds in (0.0, 9.5, 10.0):
            now = seconds
            newcomers.have_come()
        assert looks == [0.0, 10.0]


class TestQueuedRuns:
    @pytest.fixture(autouse=True)
    def disconnects(self) -> Iterator[None]:
        yield
        settings.engine.dispose()

    @pytest.fixture
    def table(self) -> Iterator[sqlalchemy.Table]:
        table = sqlalchemy.Table(DagRun.__tablename__, sqlalchemy.MetaData())
        for name in ("state", "queued_at"):
            table.append_column(sqlalchemy.Column(name, DagRun.__table__.c[name].type))
        table.create(settings.engine)
        yield table
        table.drop(settings.engine)

    def test_the_newest_of_those_that_wait(self, table: sqlalchemy.Table) -> None:
        assert internals.newest_queued_run() is None
        later = SECOND + timedelta(seconds=1)
        rows = [("queued", SECOND), ("queued", FIRST), ("running", later), ("success", later)]
        with settings.engine.begin() as connection:
            connection.execute(table.insert(), [{"state": state, "queued_at": at} for state, at in rows])
        assert internals.newest_queued_run() == SECOND

    def test_are_looked_for_beside_what_is_under_way(self, table: sqlalchemy.Table) -> None:
        with create_session() as session:
            session.execute(sqlalchemy.select(table))
            internals.newest_queued_run()
            internals.no_longer_running(["submission"])
            assert session.in_transaction()

    def test_a_database_that_does_not_answer_is_the_schedulers_affair(self) -> None:
        assert internals.newest_queued_run() is None
        assert internals.no_longer_running(["submission"]) == []


class TestRest:
    """The executor's, in the scheduler's place; there is no end to it here but that something comes."""

    @pytest.fixture
    def executor(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HeadraceExecutor]:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        executor = HeadraceExecutor(parallelism=4)
        executor._daemon, theirs = wire.pair()
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now)
        yield executor
        executor.terminate()
        theirs.close()

    @pytest.mark.skipif(internals.wake_key() is None, reason="nothing keeps the loop of Airflow awake before 3.3")
    def test_ends_when_a_run_is_asked_for(self, executor: HeadraceExecutor) -> None:
        answers = iter([None, None, FIRST])
        executor._runs = Newcomers(lambda: next(answers), every_s=0.0)
        executor._waits_for_runs = True
        executor.sync()
        assert next(answers, "none is left") == "none is left"
        assert list(executor.event_buffer) == [internals.wake_key()]

    def test_is_not_taken_where_others_may_have_something_to_do(self, executor: HeadraceExecutor) -> None:
        executor._runs = Newcomers(lambda: pytest.fail("looked"), every_s=0.0)
        executor.sync()
        assert executor.event_buffer == {}

    @pytest.mark.parametrize(
        ("key", "closes"), [(None, True), (internals.wake_key(), False)], ids=["cannot", "may not"]
    )
    def test_is_left_to_the_scheduler_where_nothing_would_wake_it(
        self, executor: HeadraceExecutor, key: object, closes: bool
    ) -> None:
        executor._wake_key = key
        executor.settings = replace(executor.settings, close_gap=closes)
        executor._runs = Newcomers(lambda: pytest.fail("looked"), every_s=0.0)
        executor._waits_for_runs = True
        executor.sync()
        assert executor.event_buffer == {}

    @pytest.mark.parametrize(
        ("executors", "arguments", "may"),
        [
            (["HeadraceExecutor"], ["airflow", "scheduler"], True),
            (["HeadraceExecutor", "LocalExecutor"], ["airflow", "scheduler"], False),
            (["HeadraceExecutor"], ["airflow", "scheduler", "--only-idle"], False),
        ],
    )
    def test_may_be_taken(
        self, monkeypatch: pytest.MonkeyPatch, executors: list[str], arguments: list[str], may: bool
    ) -> None:
        monkeypatch.setattr(ExecutorLoader, "get_executor_names", lambda: executors)
        monkeypatch.setattr(sys, "argv", arguments)
        assert internals.may_sleep_for_scheduler() is may
