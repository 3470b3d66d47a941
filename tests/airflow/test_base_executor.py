"""What Airflow expects of any executor, asked of Headrace's: after the cases of Airflow's own test_base_executor.

The executor here has no daemon: it is constructed as the scheduler does it, and not started.
"""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.executors import workloads
from airflow.executors.base_executor import BaseExecutor
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState

from headrace_airflow import HeadraceExecutor, internals, wire
from headrace_airflow.executor import _environment, _server

OURS = {"log_file", "place", "settings"}
"""The public names that Airflow's executors do not have."""
LATER = {"pre_assigns_external_executor_id", "supports_connection_test"}
"""Those that they have from 3.3 on."""


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HeadraceExecutor:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where it looks for a daemon
    return HeadraceExecutor(parallelism=4)


@pytest.fixture
def daemon(executor: HeadraceExecutor) -> Iterator[wire.Channel]:
    """The other end of the executor's connection to its daemon."""
    executor._daemon, theirs = wire.pair()
    channel = wire.Channel(theirs)
    yield channel
    executor.terminate()
    channel.close()


def key_of(task_id: str, dag_id: str = "dag") -> TaskInstanceKey:
    return TaskInstanceKey(dag_id, task_id, "run", 1, -1)


def workload_of(task_id: str, priority: int = 1, **fields: Any) -> workloads.ExecuteTask:
    dto = workloads.ExecuteTask.model_fields["ti"].annotation
    known = {
        "id": uuid.uuid4(),
        "dag_version_id": uuid.uuid4(),
        "task_id": task_id,
        "dag_id": "dag",
        "run_id": "run",
        "try_number": 1,
        "map_index": -1,
        "pool_slots": 1,
        "queue": "default",
        "priority_weight": priority,
        **fields,
    }
    info = workloads.ExecuteTask.model_fields["bundle_info"].annotation
    return workloads.ExecuteTask(
        ti=dto(**known), dag_rel_path=Path("dag.py"), bundle_info=info(name="bundle"), log_path="log", token="token"
    )


def queue(executor: HeadraceExecutor, *tasks: workloads.ExecuteTask) -> None:
    for task in tasks:
        executor.queue_workload(task, session=None)


class TestInterface:
    def test_has_every_public_name_of_an_executor_and_few_others(self, executor: HeadraceExecutor) -> None:
        theirs = {name for name in dir(BaseExecutor(4)) if not name.startswith("_")}
        ours = {name for name in dir(executor) if not name.startswith("_")}
        assert ours - theirs - LATER == OURS
        assert theirs <= ours

    @pytest.mark.parametrize("name", [name for name in vars(HeadraceExecutor) if hasattr(BaseExecutor, name)])
    def test_what_it_overrides_can_be_called_in_the_same_ways(self, name: str) -> None:
        ours, theirs = getattr(HeadraceExecutor, name), getattr(BaseExecutor, name)
        if name.startswith("__") or not callable(theirs):
            assert callable(ours) == callable(theirs)
            return
        if name.startswith("_"):  # only called by place
            assert [kind for _, kind in parameters(ours)] == [kind for _, kind in parameters(theirs)]
        else:
            assert parameters(ours) == parameters(theirs)

    def test_declares_what_it_can_do(self) -> None:
        can = [name for name in dir(BaseExecutor) if name.startswith(("supports_", "pre_assigns_"))]
        assert "supports_ad_hoc_ti_run" in can
        missing = (
            [] if internals.has_module("airflow.sdk.execution_time.callback_supervisor") else ["supports_callbacks"]
        )
        assert [name for name in can if not getattr(HeadraceExecutor, name)] == missing
        assert HeadraceExecutor.is_local
        assert HeadraceExecutor.is_production
        assert HeadraceExecutor.serve_logs

    def test_refuses_to_run_nothing_at_a_time(self) -> None:
        with pytest.raises(ValueError, match="parallelism is set to 0 or lower"):
            HeadraceExecutor(parallelism=0)

    def test_says_what_it_is(self, executor: HeadraceExecutor) -> None:
        assert repr(executor) == "HeadraceExecutor(parallelism=4)"

    def test_has_commands(self) -> None:
        parser = HeadraceExecutor._get_parser()
        assert isinstance(parser, argparse.ArgumentParser)
        assert callable(parser.parse_args(["headrace", "status"]).func)
        with pytest.raises(SystemExit):
            parser.parse_args(["headrace", "nonsense"])

    def test_dumps_its_state_for_whoever_debugs(
        self, executor: HeadraceExecutor, capsys: pytest.CaptureFixture[str]
    ) -> None:
        queue(executor, workload_of("waits"))
        executor.debug_dump()
        told = capsys.readouterr().out
        assert "executor.queued_tasks (1)" in told
        assert "waits" in told


def parameters(function: Any) -> list[tuple[str, Any]]:
    return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]


class TestEvents:
    @pytest.mark.parametrize(
        ("report", "state", "goes_on"),
        [
            ("success", TaskInstanceState.SUCCESS, False),
            ("fail", TaskInstanceState.FAILED, False),
            ("queued", TaskInstanceState.QUEUED, False),
            ("running_state", TaskInstanceState.RUNNING, True),
        ],
    )
    def test_reports_a_state(
        self, executor: HeadraceExecutor, report: str, state: TaskInstanceState, goes_on: bool
    ) -> None:
        key = key_of("task")
        executor.running.add(key)
        getattr(executor, report)(key, info="why")
        assert executor.event_buffer == {key: (state, "why")}
        assert executor.running == ({key} if goes_on else set())

    def test_reports_what_it_does_not_know_as_running(self, executor: HeadraceExecutor) -> None:
        executor.fail(key_of("one"))
        executor.success(key_of("two"))
        assert executor.slots_occupied == 0
        assert len(executor.get_event_buffer()) == 2

    def test_hands_out_events_once_and_by_dag(self, executor: HeadraceExecutor) -> None:
        of_one, of_two = key_of("task", "one"), key_of("task", "two")
        executor.success(of_one)
        executor.fail(of_two)
        assert executor.get_event_buffer(["one"]) == {of_one: (TaskInstanceState.SUCCESS, None)}
        assert executor.get_event_buffer() == {of_two: (TaskInstanceState.FAILED, None)}
        assert executor.get_event_buffer() == {}

    def test_sends_no_callback_without_a_sink(self, executor: HeadraceExecutor) -> None:
        with pytest.raises(ValueError, match="Callback sink is not ready"):
            executor.send_callback(SimpleNamespace())


class TestQueue:
    def test_takes_the_most_urgent_first_and_no_more_than_there_is_room_for(self, executor: HeadraceExecutor) -> None:
        tasks = {"late": 1, "first": 9, "second": 5}
        queue(executor, *(workload_of(name, priority) for name, priority in tasks.items()))
        *started, late = (key.task_id for key, _ in executor.order_queued_tasks_by_priority())
        executor.trigger_tasks(open_slots=2)
        assert list(executor.queued_tasks) == [key_of(late)]
        assert executor.running == {key_of(name) for name in started}

    def test_takes_a_task_again_that_is_queued_again(self, executor: HeadraceExecutor) -> None:
        queue(executor, workload_of("task"))
        executor.trigger_tasks(open_slots=4)
        executor.fail(key_of("task"))
        queue(executor, workload_of("task"))
        executor.trigger_tasks(open_slots=4)
        assert executor.running == {key_of("task")}
        assert not executor.queued_tasks

    def test_tells_a_scheduler_that_assigns_no_ids_the_one_of_its_submission(
        self, executor: HeadraceExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(internals, "assigns_ids", lambda: False)
        queue(executor, workload_of("task"))
        executor.trigger_tasks(open_slots=4)
        ((state, submission),) = executor.event_buffer.values()
        assert state == TaskInstanceState.QUEUED
        assert executor.running == {key_of("task")}
        executor._take({"t": "ended", "id": submission, "ok": True})
        assert executor.event_buffer == {key_of("task"): (TaskInstanceState.SUCCESS, None)}

    def test_a_heartbeat_takes_what_fits(self, executor: HeadraceExecutor) -> None:
        queue(executor, *(workload_of(f"task_{number}") for number in range(6)))
        executor.heartbeat()
        assert (len(executor.running), len(executor.queued_tasks)) == (4, 2)

    def test_knows_its_tasks(self, executor: HeadraceExecutor) -> None:
        queue(executor, workload_of("task"))
        assert executor.has_task(SimpleNamespace(id=None, key=key_of("task")))
        assert not executor.has_task(SimpleNamespace(id=None, key=key_of("another")))

    def test_refuses_what_it_does_not_know(self, executor: HeadraceExecutor) -> None:
        with pytest.raises(ValueError, match="workload"):
            executor.queue_workload(SimpleNamespace(key="key"), session=None)

    def test_has_no_room_without_a_daemon(self, executor: HeadraceExecutor) -> None:
        queue(executor, workload_of("task"))
        assert (executor.slots_occupied, executor.slots_available) == (1, 0)

    def test_has_no_room_while_what_the_daemon_has_waits(
        self, executor: HeadraceExecutor, daemon: wire.Channel
    ) -> None:
        queue(executor, workload_of("task"))
        executor.trigger_tasks(open_slots=4)
        assert executor.slots_available == 3
        for full, slots in ((True, 0), (False, 3)):
            daemon.send({"t": "room", "full": full, "drained": False})
            executor._take_events()
            assert executor.slots_available == slots

    def test_a_task_that_waits_for_room_is_requeued_as_often_as_that_does_not_fail_it(
        self, executor: HeadraceExecutor, daemon: wire.Channel
    ) -> None:
        task = SimpleNamespace(key=key_of("task"))
        for _ in range(2):
            queue(executor, workload_of("task"))
            executor.trigger_tasks(open_slots=4)
            executor.revoke_task(ti=task)
        queue(executor, workload_of("task"))
        executor.trigger_tasks(open_slots=4)
        with pytest.raises(NotImplementedError, match="waits for room"):
            executor.revoke_task(ti=task)
        *_, (message, _) = daemon.receive()
        assert message["t"] == "submit"
        daemon.send({"t": "started", "id": message["id"], "pid": 1})
        executor._take_events()
        executor.revoke_task(ti=task)
        assert not executor.running

    def test_the_token_of_a_task_that_waits_for_room_is_renewed(
        self, executor: HeadraceExecutor, daemon: wire.Channel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(executor, "jwt_generator", SimpleNamespace(generate=lambda *_, **__: "new"), raising=False)
        queue(executor, workload_of("waits"))
        executor.trigger_tasks(open_slots=4)
        executor._renew_tokens()
        ((submitted, _),) = daemon.receive()
        executor._renew_s = 0.0
        executor._renew_tokens()
        assert daemon.receive() == [({"t": "renew", "id": submitted["id"], "token": "new"}, [])]

    def test_the_end_does_not_wait_for_what_a_drained_node_will_not_start(
        self, executor: HeadraceExecutor, daemon: wire.Channel
    ) -> None:
        queue(executor, workload_of("waits"))
        executor.trigger_tasks(open_slots=4)
        daemon.send({"t": "room", "full": True, "drained": True})
        executor._take_events()
        executor.end()

    def test_revokes_a_task_wherever_it_is_and_says_nothing(self, executor: HeadraceExecutor) -> None:
        queue(executor, workload_of("runs", 2), workload_of("waits"))
        executor.trigger_tasks(open_slots=1)
        for task_id in ("runs", "waits", "unknown"):
            executor.revoke_task(ti=SimpleNamespace(key=key_of(task_id)))
        assert executor.slots_occupied == 0
        assert executor.event_buffer == {}

    def test_a_task_that_needs_what_nobody_understands_fails_with_a_reason(self, executor: HeadraceExecutor) -> None:
        queue(executor, workload_of("task", executor_config={"headrace": {"cpus": "many"}}))
        executor.trigger_tasks(open_slots=1)
        ((state, info),) = executor.get_event_buffer().values()
        assert state == TaskInstanceState.FAILED
        assert "executor_config" in info
        assert "many" in info
        log = executor.log_file.parent.parent / "log"
        assert json.loads(log.read_text())["event"] == info
        log.unlink()


class TestWithoutADaemon:
    def test_adopts_nothing(self, executor: HeadraceExecutor) -> None:
        tasks = [SimpleNamespace(key=key_of(name), external_executor_id=name) for name in ("one", "two", "three")]
        assert executor.try_adopt_task_instances(tasks) == tasks

    def test_has_no_log(self, executor: HeadraceExecutor) -> None:
        task = SimpleNamespace(external_executor_id="one", try_number=1)
        assert executor.get_task_log(task, 1) == ([], [])

    def test_ends(self, executor: HeadraceExecutor) -> None:
        executor.end()
        executor.terminate()


class TestPatience:
    """With an API server that is away, unless somebody has said how much of it."""

    NAMES = ("AIRFLOW__WORKERS__EXECUTION_API_RETRIES", "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX")

    def told(self) -> list[str | None]:
        found = _environment()
        return [found.get(name) for name in self.NAMES]

    def test_is_more_than_stock(self) -> None:
        assert self.told() == ["40", "4"]

    @pytest.mark.parametrize(("name", "value"), [(NAMES[0], "3"), (NAMES[1], "7")])
    def test_is_as_it_was_asked_for(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        monkeypatch.setenv(name, value)
        assert self.told() == [value if known == name else None for known in self.NAMES]


class TestApiServer:
    """Its URL, which a team may have of its own: what is asked is the executor's configuration."""

    @pytest.mark.parametrize(
        ("options", "url"),
        [
            ({}, "http://localhost:8080/execution/"),
            ({"base_url": "http://host/ui/"}, "http://host/ui/execution/"),
            ({"base_url": "http://host", "execution_api_server_url": "http://team/"}, "http://team/"),
        ],
        ids=["default", "base", "own"],
    )
    def test_is_the_teams(self, options: dict[str, str], url: str) -> None:
        team = SimpleNamespace(get=lambda section, name, fallback: options.get(name, fallback))
        assert _server(team) == url
