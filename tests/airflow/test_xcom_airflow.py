"""HeadraceXCom on a real Airflow: DAGs that check what they get, the REST API, clearing, deleting, a killed store."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.testing import wait_until
from headrace_airflow.bench.airflow import RealAirflow
from headrace_airflow.bench.client import DagRun
from headrace_airflow.bench.processes import has_ended
from headrace_airflow.store.client import StoreClient
from headrace_airflow.store.settings import StoreSettings

pytestmark = pytest.mark.shares_runtime

DAGS = Path(__file__).parent / "xcom_dags"
SETTINGS = {
    "AIRFLOW__CORE__XCOM_BACKEND": "headrace_airflow.HeadraceXCom",
    "AIRFLOW__HEADRACE__XCOM_GRACE": "0",
    "AIRFLOW__HEADRACE__XCOM_MEMORY": "1GiB",
    "AIRFLOW__HEADRACE__XCOM_SPILL_PATH": "/proc/self/nowhere",
}


HEADRACE = "headrace_airflow.HeadraceExecutor"


@pytest.fixture(
    scope="module", params=[("LocalExecutor", "sqlite"), (HEADRACE, "postgres")], ids=lambda param: param[0]
)
def airflow(request: pytest.FixtureRequest, make_shared_airflow: Any) -> RealAirflow:
    executor, database = request.param
    return make_shared_airflow(database, executor=executor, dags=DAGS, settings=SETTINGS)


@pytest.fixture
def store(airflow: RealAirflow) -> Iterator[StoreClient]:
    base = airflow.home.folder / "headrace"
    client = StoreClient(StoreSettings(str(base / "node"), str(base / "xcom"), "", 0), starts=False)
    yield client
    client.close()


def objects(store: StoreClient, run: DagRun) -> dict[str, dict[str, Any]]:
    """Task → what the store holds of a run."""
    found = store.ask("list")
    return {o["slot"][2]: o for o in (found["objects"] if found else []) if o["slot"][1] == run.run_id}


def copies(airflow: RealAirflow, run: DagRun) -> list[Path]:
    return [p for p in (airflow.home.folder / "headrace" / "xcom").glob("*/*/*/*/*.headrace") if run.run_id in str(p)]


def kill_store(store: StoreClient) -> None:
    status = store.ask("status")
    if status is not None:
        os.kill(status["pid"], signal.SIGKILL)
        wait_until(lambda: has_ended(status["pid"]), "the store's death")


@pytest.mark.parametrize("dag_id", ["mapped", "over_one_value", "arguments", "outputs", "classes", "teardown"])
def test_tasks_get_what_others_returned(airflow: RealAirflow, dag_id: str) -> None:
    run = airflow.run(f"xcom_{dag_id}")
    assert run.state == "success", airflow.describe(run)


def test_values_are_read_across_dags_and_from_earlier_runs(airflow: RealAirflow, store: StoreClient) -> None:
    earlier = airflow.run("xcom_producer")
    airflow.run("xcom_producer")
    conf = {"dag_id": "xcom_producer", "run_id": earlier.run_id, "task_id": "produce"}
    run = airflow.run("xcom_consumer", conf)
    assert run.state == "success"
    assert airflow.xcom(run, "consume") == 1


def test_the_api_shows_a_summary(airflow: RealAirflow) -> None:
    run = airflow.run("xcom_producer")
    row = airflow.xcom(run, "produce")
    assert row["__classname__"] == "headrace.XCom"
    assert (row["__data__"]["type"], row["__data__"]["size"]) == ("numpy.ndarray", "1.5 MiB")
    path = f"{run.path}/taskInstances/produce/xcomEntries/return_value"
    shown = airflow.api.get(path, deserialize="true")["value"].replace("'", "")  # from 3.3 texts stand in quotes
    assert shown.startswith("headrace.XCom@version=1(")
    assert all(part in shown for part in ("type=numpy.ndarray", "shape=200000 int64", "size=1.5 MiB"))


def test_bad_values_fail_their_task_and_say_why(airflow: RealAirflow) -> None:
    run = airflow.run("xcom_bad")
    assert {task.state for task in airflow.tasks(run)} == {"failed"}
    assert "return_value['model']['lock']: cannot pickle" in str(airflow.log(run, "unpicklable"))
    assert "A generator can be read only once" in str(airflow.log(run, "pushes_a_generator"))
    log = str(airflow.log(run, "larger_than_memory_and_disk"))
    assert "StoreFullError" in log
    assert "of 1073741824 bytes of memory are free ([headrace] xcom_memory), and /proc/self/nowhere cannot" in log


def test_no_value_needs_room_in_dev_shm(airflow: RealAirflow, store: StoreClient) -> None:
    run = airflow.run("xcom_large")
    assert run.state == "success", airflow.describe(run)
    mapped = airflow.xcom(run, "maps")
    assert sum(size for path, size in mapped.items() if "headrace-xcom" in path) > 80 * 10**6
    assert sum(size for path, size in mapped.items() if path.startswith("/dev/shm/")) < 1 << 20
    held = psutil.Process(status(store)["pid"]).open_files()
    assert not [file.path for file in held if file.path.startswith("/dev/shm/")]


def test_a_full_disk_leaves_values_in_memory_and_is_shown(airflow: RealAirflow, store: StoreClient) -> None:
    airflow.run("xcom_producer")
    store.ask("flush")
    (writer,) = [p.pid for p in psutil.Process(status(store)["pid"]).children() if "writer" in p.cmdline()[-1]]
    limits = resource.prlimit(writer, resource.RLIMIT_FSIZE)
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    run = airflow.run("xcom_classes")
    assert run.state == "success", airflow.describe(run)
    wait_until(lambda: {held["durable"] for held in objects(store, run).values()} == {"failed"}, "failed attempts")
    command = ("-m", "airflow", "headrace", "store")
    wait_until(lambda: "File too large" in run_python(airflow, *command), "the reason", timeout_s=90)
    expected = len(objects(store, run))
    resource.prlimit(writer, resource.RLIMIT_FSIZE, limits)
    store.ask("end")  # which tries once more, before the next attempt is due
    wait_until(lambda: len(copies(airflow, run)) == expected, "the copies")


def clear(airflow: RealAirflow, run: DagRun, *tasks: str) -> None:
    body = {"dry_run": False, "dag_run_id": run.run_id, "task_ids": list(tasks), "only_failed": False}
    airflow.api.request("POST", f"/dags/{run.dag_id}/clearTaskInstances", json=body)


def test_a_cleared_task_replaces_its_value(airflow: RealAirflow, store: StoreClient) -> None:
    run = airflow.run("xcom_producer")
    (before,) = objects(store, run).values()
    clear(airflow, run, "produce")
    airflow.wait_until(lambda: airflow.task(run, "produce").try_number == 2, "a second try")
    assert airflow.wait(run).state == "success"
    (after,) = objects(store, run).values()
    assert after["id"] != before["id"]
    store.ask("flush")
    (copy,) = copies(airflow, run)
    assert after["id"] in copy.name


def test_a_consumer_can_be_cleared_after_the_store_was_killed(airflow: RealAirflow, store: StoreClient) -> None:
    run = airflow.run("xcom_classes")
    store.ask("flush")
    kill_store(store)
    clear(airflow, run, "predict")
    airflow.wait_until(lambda: airflow.task(run, "predict").try_number == 2, "a second try")
    assert airflow.wait(run).state == "success", airflow.describe(run)


def test_a_lost_value_says_which_task_to_clear(airflow: RealAirflow, store: StoreClient) -> None:
    run = airflow.run("xcom_classes")
    store.ask("flush")
    kill_store(store)
    for copy in copies(airflow, run):
        copy.unlink()
    clear(airflow, run, "predict")
    airflow.wait_until(lambda: airflow.task(run, "predict").try_number == 2, "a second try")
    airflow.wait_for_task(run, "predict", {"failed"})
    assert "Clear task 'train' of that run" in str(airflow.log(run, "predict", 2))


def test_what_was_deleted_through_the_api_is_collected(airflow: RealAirflow, store: StoreClient) -> None:
    kept, deleted, whole = (airflow.run("xcom_producer") for _ in range(3))
    store.ask("flush")
    airflow.api.request("DELETE", f"{deleted.path}/taskInstances/produce/xcomEntries/return_value")
    airflow.api.request("DELETE", whole.path)
    code = (
        "from airflow.utils.session import create_session\n"
        "from headrace_airflow.xcom_admin import collect, show\n"
        "with create_session() as session: print('collected', collect(session, young_s=0.0))\n"
        "print(show())\n"
    )
    out = run_python(airflow, "-c", code)
    assert "collected 2" in out
    assert kept.run_id in out
    wait_until(lambda: store.ask("flush") and not copies(airflow, deleted), "the erasing")
    assert copies(airflow, whole) == []
    assert len(copies(airflow, kept)) == 1


def test_the_command_line_shows_what_is_held(airflow: RealAirflow, store: StoreClient) -> None:
    run = airflow.run("xcom_producer")
    store.ask("flush")
    held = json.loads(run_python(airflow, "-m", "airflow", "headrace", "store", "--json"))
    (usage,) = [usage for usage in held["runs"] if usage["run_id"] == run.run_id]
    assert (usage["dag_id"], usage["objects"], usage["not_copied"]) == ("xcom_producer", 1, 0)
    assert usage["memory_bytes"] == usage["copied_bytes"] > 8 * 200_000
    assert held["service"]["pid"] == status(store)["pid"]
    kill_store(store)
    shown = run_python(airflow, "-m", "airflow", "headrace", "store", "--collect")
    (line,) = [line for line in shown.splitlines() if run.run_id in line]
    assert line.split()[:4] == ["xcom_producer", run.run_id, "1", "0"], "its copy counts, who has made it or not"


def test_the_daemon_hosts_the_store_where_there_is_one(airflow: RealAirflow, store: StoreClient) -> None:
    airflow.run("xcom_producer")
    serving = psutil.Process(status(store)["pid"])
    command = " ".join(serving.cmdline())
    assert ("headrace_airflow.daemon" in command) == (HEADRACE in airflow.environment["AIRFLOW__CORE__EXECUTOR"])
    assert ("headrace_airflow.store_service" in command) != ("headrace_airflow.daemon" in command)


def status(store: StoreClient) -> dict[str, Any]:
    found = store.ask("status")
    assert found is not None
    return found


def run_python(airflow: RealAirflow, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=airflow.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
