"""Generator tasks on a real Airflow: their values under both executors, and consumers that begin before they end."""

from __future__ import annotations

import itertools
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from headrace.testing import wait_until
from headrace_airflow.bench.client import DagRun

pytestmark = pytest.mark.shares_runtime

DAGS = Path(__file__).parent / "stream_dags"
VALUES = {
    "summary": [1000, 998_001, [0, 1, 4], sum(n * n for n in range(1000)), True],
    "all_of": [1, 2, 3],
    "first_of_each": ["a", "b", "d"],
    "count_nothing": 0,
    "metadata_alone_is_no_value": True,
    "returns": "kept",
    "is_not_pushed": True,
}
NORMAL = {
    "runs_all_the_same": [0, 1, 2],
    "says_no": [0, 1, 2],
    "has_another_upstream": [0, 1, 2],
    "looks_at_its_run": [0, 1, 2],
    "defers": [0, 1, 2],
}
STOCK_GENERATOR = """
from airflow.sdk import dag, task

@task
def yields():
    yield 1

@task
def is_none(value):
    return value is None

@dag(schedule=None, tags=["headrace-stream"])
def stock_generator():
    is_none(yields())

@task
def takes(value):
    return value

@dag(schedule=None)
def stock_mapped_generator():
    takes.expand(value=yields())

stock_generator()
stock_mapped_generator()
"""
PIPELINED = "This task was pipelined"
DISCARDED = "What ran ahead of this task is discarded"
LONG_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def streams(airflow: Any, folder: Path) -> Any:
    for file in DAGS.glob("*.py"):
        airflow.write_dag(file.name, file.read_text().replace('"FOLDER"', repr(str(folder))))
    names = (
        "values values_local pipeline groups held times_out follower_times_out asks fails normal contained forbidden "
        "mapped too_many"
    )
    airflow.wait_for_dags({f"stream_{name}" for name in names.split()})
    return airflow


@pytest.fixture(autouse=True)
def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for_follower(folder: Path, count: int = 1) -> int:
    """The pid of the so many-th process that has begun to follow a stream."""
    pids = folder / "pids"
    wait_until(lambda: len(lines(pids)) >= count, timeout_s=LONG_S)
    return int(lines(pids)[count - 1])


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def gantt(airflow: Any, run: DagRun) -> Any:
    """What Airflow's UI draws of a run."""
    token = httpx.get(f"{airflow.home.url}/auth/token", trust_env=False).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{airflow.home.url}/ui/gantt/{run.dag_id}/{run.run_id}"
    reply = httpx.get(url, headers=headers, trust_env=False, timeout=30).raise_for_status()
    return [bar for bar in reply.json()["task_instances"] if not bar["is_group"]]


def runs_ahead(dag_id: str, task_id: str) -> bool:
    title = f"headrace ahead: {dag_id}.{task_id}"
    return any((process.info["cmdline"] or [""])[0].startswith(title) for process in psutil.process_iter(["cmdline"]))


def states(airflow: Any, run: DagRun) -> dict[str, str]:
    return {task.name: task.state for task in airflow.tasks(run)}


class TestValues:
    @pytest.mark.parametrize("dag_id", ["stream_values", "stream_values_local"])
    def test_consumers_get_what_was_yielded(self, streams: Any, dag_id: str) -> None:
        run = streams.run(dag_id)
        assert run.state == "success", streams.why(run)
        assert {task_id: streams.xcom(run, task_id) for task_id in VALUES} == VALUES

    def test_with_stock_xcom_a_generator_is_what_it_is_in_stock(self, airflow_on_postgres: Any) -> None:
        airflow_on_postgres.write_dag("stock_generator.py", STOCK_GENERATOR)
        airflow_on_postgres.wait_for_dags({"stock_generator", "stock_mapped_generator"})
        run = airflow_on_postgres.run("stock_generator")
        assert run.state == "success", airflow_on_postgres.why(run)
        assert airflow_on_postgres.xcom(run, "is_none") is True
        run = airflow_on_postgres.run("stock_mapped_generator")
        assert states(airflow_on_postgres, run) == {"yields": "failed", "takes": "upstream_failed"}
        assert "XComForMappingNotPushed" in airflow_on_postgres.log(run, "yields")


class TestPipelined:
    @pytest.mark.parametrize(
        ("dag_id", "groups"), [("stream_pipeline", ("", "")), ("stream_groups", ("first.", "second."))]
    )
    def test_stages_run_at_once_while_airflow_sees_one_after_another(
        self, streams: Any, dag_id: str, groups: tuple[str, str]
    ) -> None:
        run = streams.run(dag_id)
        names = f"{groups[0]}reads", f"{groups[0]}transforms", f"{groups[1]}aggregates"
        reads, transforms, aggregates = (streams.task(run, name) for name in names)
        assert reads.end_date <= transforms.start_date <= transforms.end_date <= aggregates.start_date
        steps = streams.xcom(run, aggregates.task_id)
        assert [step for step, _, _ in steps] == list(range(5))
        assert steps[-1][1] < reads.end_date.timestamp()
        logs = [streams.log(run, name) for name in names]
        assert [PIPELINED in log for log in logs] == [False, True, True]
        (times,) = re.findall(r"from ([\d:.]+) to ([\d:.]+); the task started at ([\d:.]+)", logs[1])
        began, ended, started = (datetime.strptime(at, "%H:%M:%S.%f") for at in times)
        for later in (ended, started):
            assert timedelta() < (later - began) % timedelta(days=1) < timedelta(hours=1)
        assert "transforms prints" in logs[1]
        assert "transforms logs" in logs[1]
        bars = sorted(gantt(streams, run), key=lambda bar: bar["start_date"])
        assert [(bar["task_id"], bar["state"], bar["try_number"]) for bar in bars] == [
            (name, "success", 1) for name in names
        ]
        assert all(bar["end_date"] <= after["start_date"] for bar, after in itertools.pairwise(bars))

    def test_a_task_whose_function_still_runs_is_running(self, streams: Any, folder: Path) -> None:
        run = streams.trigger("stream_follower_times_out")
        pid = wait_for_follower(folder)
        assert states(streams, run) == {"one": "running", "hangs": None}
        (folder / "go").touch()
        ended = streams.wait(run)
        hangs = streams.task(run, "hangs")
        assert (ended.state, hangs.state) == ("failed", "failed")
        assert hangs.duration_s >= 2  # its time begins when it does
        assert "AirflowTaskTimeout" in streams.log(run, "hangs")
        wait_until(lambda: is_gone(pid), timeout_s=LONG_S)
        assert len(lines(folder / "pids")) == 1

    def test_a_cleared_run_streams_again(self, streams: Any, folder: Path) -> None:
        for number in (1, 2):
            (folder / f"go {number}").touch()
        run = streams.run("stream_held")
        assert streams.xcom(run, "held")["__data__"]["shape"] == "2 items"
        body = {"dry_run": False, "dag_run_id": run.run_id, "only_failed": False, "reset_dag_runs": True}
        streams.api.request("POST", "/dags/stream_held/clearTaskInstances", json=body)
        wait_until(lambda: streams.task(run, "follows").try_number == 2, timeout_s=LONG_S)
        assert streams.wait(run).state == "success"
        assert streams.xcom(run, "follows") == ["try 2", "end"]


class TestDiscarded:
    """What ran ahead of a producer that did not succeed is gone, and Airflow never knew of it."""

    def hold(self, airflow: Any, folder: Path) -> tuple[DagRun, int]:
        run = airflow.trigger("stream_held")
        pid = wait_for_follower(folder)
        assert states(airflow, run) == {"held": "running", "follows": None}
        return run, pid

    def test_when_it_is_retried(self, streams: Any, folder: Path) -> None:
        run, pid = self.hold(streams, folder)
        for name in ("fail 1", "go 1"):
            (folder / name).touch()
        second = wait_for_follower(folder, 2)
        wait_until(lambda: is_gone(pid), timeout_s=LONG_S)
        assert states(streams, run) == {"held": "running", "follows": None}
        (folder / "go 2").touch()
        assert streams.wait(run).state == "success"
        wait_until(lambda: is_gone(second), timeout_s=LONG_S)
        assert streams.xcom(run, "follows") == ["try 2", "end"]
        assert (streams.task(run, "held").try_number, streams.task(run, "follows").try_number) == (2, 1)
        assert PIPELINED in streams.log(run, "follows")
        assert len(lines(folder / "pids")) == 2

    def test_when_it_fails(self, streams: Any, folder: Path) -> None:
        run, _ = self.hold(streams, folder)
        for name in ("fail 1", "go 1", "fail 2", "go 2"):
            (folder / name).touch()
        assert streams.wait(run).state == "failed"
        assert states(streams, run) == {"held": "failed", "follows": "upstream_failed"}
        wait_until(lambda: all(is_gone(int(pid)) for pid in lines(folder / "pids")), timeout_s=LONG_S)

    def test_when_it_is_skipped(self, streams: Any, folder: Path) -> None:
        run, pid = self.hold(streams, folder)
        for name in ("skip 1", "go 1"):
            (folder / name).touch()
        assert streams.wait(run).state == "success"
        assert states(streams, run) == {"held": "skipped", "follows": "skipped"}
        wait_until(lambda: is_gone(pid), timeout_s=LONG_S)

    def test_when_it_times_out(self, streams: Any, folder: Path) -> None:
        run = streams.run("stream_times_out")
        assert states(streams, run) == {"hangs": "failed", "follows": "upstream_failed"}
        pid = wait_for_follower(folder)
        wait_until(lambda: is_gone(pid), timeout_s=LONG_S)

    @pytest.mark.parametrize(
        ("state", "follower_gets"), [("failed", None), ("success", "None")], ids=["failed", "success"]
    )
    def test_when_it_is_marked(self, streams: Any, folder: Path, state: str, follower_gets: str | None) -> None:
        run, pid = self.hold(streams, folder)
        streams.api.request("PATCH", f"{run.path}/taskInstances/held", json={"new_state": state})
        streams.wait(run)
        wait_until(lambda: is_gone(pid), timeout_s=LONG_S)
        expected = "upstream_failed" if follower_gets is None else "failed"
        assert states(streams, run) == {"held": state, "follows": expected}
        if follower_gets is not None:
            assert "'NoneType' object is not iterable" in streams.log(run, "follows")

    def test_when_it_is_cleared(self, streams: Any, folder: Path) -> None:
        run, pid = self.hold(streams, folder)
        body = {"dry_run": False, "dag_run_id": run.run_id, "task_ids": ["held"], "only_failed": False,
                "include_downstream": True}  # fmt: skip
        streams.api.request("POST", "/dags/stream_held/clearTaskInstances", json=body)
        wait_for_follower(folder, 2)
        wait_until(lambda: is_gone(pid), timeout_s=LONG_S)
        (folder / "go 2").touch()
        assert streams.wait(run).state == "success"
        assert streams.xcom(run, "follows") == ["try 2", "end"]

    @pytest.mark.parametrize(
        ("dag_id", "state", "tries"), [("stream_asks", "success", 1), ("stream_fails", "failed", 2)]
    )
    def test_when_it_gives_up_itself(self, streams: Any, folder: Path, dag_id: str, state: str, tries: int) -> None:
        run = streams.trigger(dag_id)
        pid = wait_for_follower(folder)
        wait_until(lambda: is_gone(pid), timeout_s=LONG_S)
        (folder / "go 1").touch()
        assert streams.wait(run).state == state
        task_id = dag_id.removeprefix("stream_")
        assert streams.task(run, task_id).try_number == tries
        assert len(lines(folder / "pids")) == 1 + tries
        assert PIPELINED not in streams.log(run, task_id)
        if state == "success":
            assert streams.xcom(run, task_id) == [["try 1", "end"], "default"]
        else:
            assert "ZeroDivisionError" in streams.log(run, task_id)


@pytest.fixture(scope="module")
def normal(streams: Any) -> DagRun:
    found: DagRun = streams.run("stream_normal")
    return found


class TestNotPipelined:
    def test_states(self, streams: Any, normal: DagRun) -> None:
        succeed = {"produces", "plain", *NORMAL, *(f"is_one_of_many[{index}]" for index in range(3))}
        assert states(streams, normal) == dict.fromkeys(succeed, "success")

    @pytest.mark.parametrize("task_id", NORMAL)
    def test_values(self, streams: Any, normal: DagRun, task_id: str) -> None:
        pid, items, *_ = streams.xcom(normal, task_id)
        assert items == NORMAL[task_id]
        assert pid == streams.task(normal, task_id).pid or task_id == "defers"
        assert PIPELINED not in streams.log(normal, task_id)


CONTAINED = {
    "writes": [0, 1, 2, 3],
    "looks": [True, 0, 1, 2, 3],
    "looks_at_variables": ["looks_at_variables", 0, 1, 2, 3],
    "asks": ["default", 0, 1, 2, 3],
    "looks_around": ["looks_around", 0, 1, 2, 3],
    "imports": ["wave", 0, 1, 2, 3],
    "replaces": [True, 0, 1, 2, 3],
    "makes_code": [True, 0, 1, 2, 3],
    "says_no": [0, 1, 2, 3],
    "is_watched": [0, 1, 2, 3],
}


@pytest.fixture(scope="module")
def contained(streams: Any, folder: Path) -> DagRun:
    """A run whose producer has waited for the last stage to run ahead."""
    run = streams.trigger("stream_contained")
    wait_until(lambda: runs_ahead("stream_contained", "totals"), timeout_s=LONG_S)
    (folder / "go").touch()
    found: DagRun = streams.wait(run)
    found_notes.extend(lines(folder / "notes"))
    return found


found_notes: list[str] = []
"""What ``stream_contained.writes`` has written down."""


class TestWithoutAWord:
    """The author has said nothing: what nobody can tell from a normal run is pipelined, and nothing else."""

    def test_what_computes_is_pipelined(self, streams: Any, contained: DagRun) -> None:
        assert contained.state == "success", streams.why(contained)
        assert streams.xcom(contained, "totals") == 14
        logs = [streams.log(contained, name) for name in ("squares", "totals")]
        assert all(PIPELINED in log for log in logs)
        assert "totals prints" in logs[1]

    @pytest.mark.parametrize("task_id", CONTAINED)
    def test_what_can_be_told_is_not(self, streams: Any, contained: DagRun, task_id: str) -> None:
        assert streams.xcom(contained, task_id) == CONTAINED[task_id]
        log = streams.log(contained, task_id)
        assert PIPELINED not in log
        (of_daemon,) = streams.home.folder.rglob("daemon.log")
        was_stopped = f"stream_contained.{task_id} has not run ahead" in of_daemon.read_text() or DISCARDED in log
        assert was_stopped is (task_id not in ("says_no", "is_watched"))

    def test_the_task_alone_has_an_effect(self, streams: Any, contained: DagRun) -> None:
        assert found_notes == [str(streams.task(contained, "writes").pid)]
        pid, *_ = streams.xcom(contained, "uses_what_is_open")
        assert pid == streams.task(contained, "uses_what_is_open").pid

    def test_a_tag_says_no(self, streams: Any, folder: Path) -> None:
        (folder / "go").touch()
        run = streams.run("stream_forbidden")
        assert streams.xcom(run, "totals") == 14
        assert PIPELINED not in streams.log(run, "squares") + streams.log(run, "totals")


MAPPED = {
    "of_mapped": [["a"], ["b", "c"], ["d", "e", "f"]],
    "of_mapped_by_mapped": [1, 2, 3],
    "of_both": [["a", "bc", "def"], [["a"], ["b", "c"], ["d", "e", "f"]]],
    "of_kwargs": ["", "bc", "defdef"],
    "of_partial": ["a", "def"],
    "of_map": [2, 3, 4],
    "of_zip": [2, 2, 2],
    "of_groups": [["a"], ["b", "c"], ["d", "e", "f"]],
}


@pytest.fixture(scope="module")
def mapped(streams: Any) -> DagRun:
    found: DagRun = streams.run("stream_mapped")
    return found


class TestMapped:
    def test_states(self, streams: Any, mapped: DagRun) -> None:
        tasks = streams.tasks(mapped)
        assert {task.state for task in tasks if task.task_id != "of_nothing"} == {"success"}, streams.why(mapped)
        assert {task.state for task in tasks if task.task_id == "of_nothing"} == {"skipped"}
        assert all(
            PIPELINED not in streams.log(mapped, task.task_id, map_index=task.map_index)
            for task in tasks
            if task.state == "success"
        )

    @pytest.mark.parametrize("task_id", MAPPED)
    def test_values(self, streams: Any, mapped: DagRun, task_id: str) -> None:
        assert streams.xcom(mapped, task_id) == MAPPED[task_id]

    def test_too_many_items_to_map_over_fail_as_too_long_a_list_does(self, streams: Any) -> None:
        run = streams.run("stream_too_many")
        assert states(streams, run) == {"too_many": "failed", "long": "upstream_failed"}
