"""What the benchmark runs: a DAG each, how many tasks it has, what it must return, and what is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

DAGS = Path(__file__).with_name("dags")
SLEEPERS = 125
PATIENT = {
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "600",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "1800",
}
"""What somebody sets who wants to get a large value through Airflow's own XCom."""
ITEMS_AS_XCOM = {"AIRFLOW__CORE__XCOM_BACKEND": "headrace_airflow.HeadraceXCom"}
"""With Airflow's own XCom what a generator yields is lost, under any executor."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One DAG of ``dags/``.

    Args:
        name: as it is asked for.
        dag_id: the DAG.
        title: what it is, for the table.
        tasks: how many task instances a run has.
        result: the task whose XCom is looked at, and what it must be.
        kind: ``time``: how long a run takes, once the DAG has run before. ``memory``: its tasks wait for a file, and
            the memory is looked at while all of them do. ``many``: many runs at once. ``restarts``: its tasks wait
            while schedulers are killed.
        times: how many runs at once, or how many schedulers.
        limit_s: when it is given up.
        settings: further settings of the Airflow that runs it; workloads with the same ones share an Airflow.
    """

    name: str
    dag_id: str
    title: str
    tasks: int
    result: tuple[str, object] | None = None
    kind: Literal["time", "memory", "many", "restarts"] = "time"
    times: int = 1
    limit_s: float = 300.0
    settings: Mapping[str, str] = field(default_factory=dict)


SUITE = (
    Workload("chain", "headrace_chain", "chain of 20 trivial tasks", 20, ("step_19", 20)),
    Workload("fan", "headrace_fan", "1 → 50 → 1 trivial tasks", 52, ("add", 100)),
    Workload("chain_imports", "headrace_chain_imports", "chain, pandas and pyarrow imported", 20, ("step_19", 20)),
    Workload("fan_imports", "headrace_fan_imports", "1 → 50 → 1, the same imports", 52, ("add", 100)),
    Workload("array_100mb", "headrace_array_100mb", "diamond of a 100 MB array", 4, ("span", 12_499_999.0)),
    Workload("array_1gib", "headrace_array_1gib", "diamond of a 1 GiB array", 4, ("span", 134_217_727.0)),
    Workload(
        "frame_100mb",
        "headrace_frame_100mb",
        "diamond of a 100 MB frame, raised timeouts",
        4,
        ("span", 6_249_999.0),
        limit_s=1800.0,
        settings=PATIENT,
    ),
    Workload(
        "stream",
        "headrace_stream",
        "10 s and 10 s, pipelined, HeadraceXCom",
        2,
        ("consume", 4950),
        settings=ITEMS_AS_XCOM,
    ),
    Workload(
        "sleepers",
        "headrace_sleepers",
        "125 sleeping tasks",
        SLEEPERS,
        kind="memory",
        settings={
            "AIRFLOW__CORE__PARALLELISM": str(SLEEPERS),
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": str(SLEEPERS),
        },
    ),
)
LOADS = (
    Workload("many", "headrace_many", "100 runs of 20 trivial tasks", 20, kind="many", times=100, limit_s=1800.0),
    Workload("restarts", "headrace_waiters", "16 tasks, 20 schedulers killed", 16, kind="restarts", times=20),
)
"""What only who asks for it gets: it takes long."""
WARM_UP = "headrace_warmup"
BY_NAME = {workload.name: workload for workload in (*SUITE, *LOADS)}


@dataclass(frozen=True, slots=True)
class Variant:
    """An executor, with or without Headrace's XCom backend."""

    name: str
    executor: str
    settings: Mapping[str, str] = field(default_factory=dict)
    module: str = ""

    @property
    def is_installed(self) -> bool:
        return not self.module or find_spec(self.module) is not None


OURS = "headrace_airflow.HeadraceExecutor"
STOCK = Variant("local", "LocalExecutor")
VARIANTS = (
    STOCK,
    Variant("headrace", OURS, module="headrace_airflow.executor"),
    Variant(
        "headrace+xcom",
        OURS,
        ITEMS_AS_XCOM,
        module="headrace_airflow.xcom",
    ),
)
