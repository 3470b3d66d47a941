"""When the scheduler is told that tasks have ended."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState

from headrace_airflow import HeadraceExecutor, wire
from headrace_airflow.ends import End, Ends

END = End("key", "success", None)


class TestEnds:
    def test_may_wait_if_the_task_has_succeeded(self) -> None:
        ends = Ends()
        ends.succeeded("one")
        assert [ends.may_wait(submission) for submission in ("one", "two", "one")] == [True, False, False]

    @pytest.mark.parametrize(
        ("every_s", "at_once", "due"), [(0.0, False, [END]), (3600.0, False, []), (3600.0, True, [END])]
    )
    def test_are_due_after_a_while_or_at_once(self, every_s: float, at_once: bool, due: list[End]) -> None:
        ends = Ends(every_s)
        ends.add(END)
        assert ends.due(at_once=at_once) == due
        assert ends.due(at_once=True) == [end for end in [END] if not due]

    def test_are_forgotten(self) -> None:
        ends = Ends()
        ends.succeeded("one")
        ends.add(END)
        ends.forget("key", "one")
        assert not ends.may_wait("one")
        assert ends.due(at_once=True) == []


class TestExecutor:
    """With a daemon that says what the test has it say, about tasks that it has."""

    @pytest.fixture
    def daemon(self) -> Iterator[wire.Channel]:
        self.ours, theirs = wire.pair()
        with theirs:
            yield wire.Channel(theirs)

    @pytest.fixture
    def executor(
        self, daemon: wire.Channel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> Iterator[HeadraceExecutor]:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        executor = HeadraceExecutor(parallelism=4)
        executor._daemon = self.ours
        executor._idle_sleep_s = 0.0  # it waits for nothing
        executor._looked_at = float("inf")  # and asks no database
        executor._ends = Ends(every_s=3600.0)
        for name in ("one", "two"):
            executor._keys[name] = key_of(name)
            executor._active[key_of(name)] = name
            executor.running.add(key_of(name))
        yield executor
        executor.terminate()

    def test_the_end_of_one_that_has_succeeded_waits_for_others(
        self, executor: HeadraceExecutor, daemon: wire.Channel
    ) -> None:
        ended(daemon, "one", "success")
        executor.sync()
        assert executor.running == {key_of("two")}
        assert told(executor) == {}
        ended(daemon, "two", "success")
        executor.sync()
        assert told(executor) == dict.fromkeys(["one", "two"], TaskInstanceState.SUCCESS)

    @pytest.mark.parametrize(
        ("reported", "ok", "state"),
        [
            ("failed", True, TaskInstanceState.SUCCESS),
            ("deferred", True, TaskInstanceState.SUCCESS),
            ("success", False, TaskInstanceState.FAILED),
        ],
    )
    def test_other_ends_are_told_at_once(
        self, executor: HeadraceExecutor, daemon: wire.Channel, reported: str, ok: bool, state: TaskInstanceState
    ) -> None:
        ended(daemon, "one", reported, ok=ok)
        executor.sync()
        assert told(executor) == {"one": state}

    def test_those_that_wait_are_told_before_another(self, executor: HeadraceExecutor, daemon: wire.Channel) -> None:
        ended(daemon, "one", "success")
        executor.sync()
        ended(daemon, "two", "failed", ok=False)
        executor.sync()
        assert list(told(executor)) == ["one", "two"]

    def test_that_of_a_revoked_task_is_not_told(self, executor: HeadraceExecutor, daemon: wire.Channel) -> None:
        ended(daemon, "one", "success")
        executor.sync()
        executor.revoke_task(ti=SimpleNamespace(key=key_of("one")))
        ended(daemon, "two", "success")
        executor.sync()
        assert told(executor) == {"two": TaskInstanceState.SUCCESS}

    def test_a_scheduler_that_ends_has_been_told(self, executor: HeadraceExecutor, daemon: wire.Channel) -> None:
        for name in ("one", "two"):
            ended(daemon, name, "success")
        executor.end()
        assert told(executor) == dict.fromkeys(["one", "two"], TaskInstanceState.SUCCESS)


def key_of(name: str) -> TaskInstanceKey:
    return TaskInstanceKey("dag", name, "run", 1, -1)


def ended(daemon: wire.Channel, name: str, reported: str, ok: bool = True) -> None:
    daemon.send({"t": "reported", "id": name, "state": reported})
    daemon.send({"t": "ended", "id": name, "ok": ok})


def told(executor: HeadraceExecutor) -> dict[str, Any]:
    """What the scheduler takes of tasks: name → state."""
    events = executor.get_event_buffer()
    return {key.task_id: state for key, (state, _) in events.items() if isinstance(key, TaskInstanceKey)}
