"""Tasks that compute with dask on Headrace: whose processes their workers are, and what they hand on."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
from airflow.sdk import dag, task

import headrace_dask  # noqa: F401 - registers the scheduler

PLACE = {"scheduler": "headrace", "lane": "processes"}


def whose(number: int) -> tuple[int, int, int]:
    """A function of the DAG file: workers have to know it."""
    time.sleep(0.05)  # long enough for more than one worker to be wanted
    print("a line of a worker's")
    return os.getpid(), os.getppid(), os.getpgid(0)


def seen_from_a_task() -> dict[str, Any]:
    found = dask.compute([dask.delayed(whose)(number) for number in range(20)], **PLACE)[0]
    return {
        "workers": sorted({pid for pid, _, _ in found}),
        "their_parents": sorted({parent for _, parent, _ in found}),
        "their_groups": sorted({group for _, _, group in found}),
        "task": os.getpid(),
        "zygote": os.getppid(),
    }


@dag(schedule=None)
def dask_workers():
    @task
    def anywhere() -> Any:
        return seen_from_a_task()

    @task(executor_config={"headrace": {"cpus": 1}})
    def on_one_cpu() -> Any:
        return seen_from_a_task()

    anywhere() >> on_one_cpu()


@dag(schedule=None)
def dask_killed():
    @task
    def dies_while_its_workers_work() -> None:
        folder = Path(os.environ["AIRFLOW_HOME"])
        work = [dask.delayed(note_and_sleep)(str(folder / f"worker-{number}")) for number in range(2)]
        dask.compute(work, **PLACE)

    dies_while_its_workers_work()


def note_and_sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


@dag(schedule=None)
def dask_persisted():
    @task
    def persist() -> Any:
        return da.arange(4_000_000, chunks=1_000_000).persist(scheduler="headrace")

    @task
    def add_up(collection: Any) -> int:
        blocks = [block for block in map(block_of, collection.__dask_graph__().values()) if block is not None]
        assert len(blocks) == 4
        assert all(map(is_of_store, blocks)), "they stand where the store has them"
        return int(collection.sum().compute(scheduler="headrace"))

    add_up(persist())


def block_of(node: Any) -> Any:
    value = getattr(node, "value", None)
    return value if hasattr(value, "__array_interface__") else None


def is_of_store(block: Any) -> bool:
    address = block.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split()[0].partition("-")
        if int(first, 16) <= address < int(last, 16):
            return "headrace-xcom" in line
    return False


for factory in (dask_workers, dask_killed, dask_persisted):
    factory()
