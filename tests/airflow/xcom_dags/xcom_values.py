"""Values on every way that Airflow has for them. Tasks check what they get: a run that succeeds is right."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from airflow.sdk import dag, get_current_context, setup, task, teardown

LENGTH = 200_000


@dataclass
class Model:
    """Stands in the DAG file, and goes from task to task."""

    weights: np.ndarray


@task
def array(factor: int) -> Any:
    return np.full(LENGTH, factor)


@task
def total(value: Any) -> int:
    assert isinstance(value, np.ndarray), type(value)
    value += 1  # a copy of this task's own
    return int(value.sum()) - LENGTH


@task
def total_of_all(values: Any) -> list[int]:
    return [int(value.sum()) for value in values]


@task(multiple_outputs=True)
def outputs() -> dict[str, Any]:
    return {"big": np.ones(LENGTH), "small": 3}


@task
def check(found: Any, expected: Any) -> None:
    found = [list(item) if isinstance(item, tuple) else item for item in found] if isinstance(found, list) else found
    assert found == expected, (found, expected)


@dag(schedule=None)
def xcom_mapped():
    arrays = array.expand(factor=[1, 2, 3])
    check(total_of_all(arrays), [LENGTH, 2 * LENGTH, 3 * LENGTH])
    totals = total.expand(value=arrays)
    check(total_of_all.override(task_id="again")(arrays), [LENGTH, 2 * LENGTH, 3 * LENGTH])

    @task
    def collect(values: Any) -> list[int]:
        return list(values)

    check(collect(totals), [LENGTH, 2 * LENGTH, 3 * LENGTH])


@dag(schedule=None)
def xcom_over_one_value():
    @task
    def pieces() -> list[Any]:
        return [np.full(LENGTH, n) for n in range(3)]

    @task
    def collect(values: Any) -> list[int]:
        return list(values)

    check(collect(total.expand(value=pieces())), [0, LENGTH, 2 * LENGTH])


@dag(schedule=None)
def xcom_arguments():
    ones, twos = array.override(task_id="ones").expand(factor=[1, 1]), array.override(task_id="twos").expand(factor=[2])

    @task
    def added(pair: Any) -> int:
        one, two = pair
        return int((one + (0 if two is None else two)).sum())

    @task
    def collect(values: Any) -> list[int]:
        return list(values)

    check.override(task_id="zipped")(collect(added.expand(pair=ones.zip(twos, fillvalue=None))), [3 * LENGTH, LENGTH])
    tripled = ones.map(lambda value: value * 3)
    check.override(task_id="mapped")(
        collect.override(task_id="collect_mapped")(total.override(task_id="total_mapped").expand(value=tripled)),
        [3 * LENGTH, 3 * LENGTH],
    )
    joined = total.override(task_id="total_joined").expand(value=ones.concat(twos))
    check.override(task_id="joined")(collect.override(task_id="collect_joined")(joined), [LENGTH, LENGTH, 2 * LENGTH])


@dag(schedule=None)
def xcom_outputs():
    found = outputs()
    check.override(task_id="check_big")(total(found["big"]), LENGTH)
    check.override(task_id="check_small")(found["small"], 3)

    @task
    def whole(value: Any) -> None:
        assert value["small"] == 3
        assert value["big"].sum() == LENGTH

    whole(found)


@dag(schedule=None)
def xcom_classes():
    @task
    def train() -> Any:
        return Model(np.arange(LENGTH))

    @task
    def predict(model: Any) -> None:
        assert type(model) is Model
        assert model.weights[5] == 5

    @task
    def pushes() -> None:
        get_current_context()["ti"].xcom_push("model", Model(np.ones(LENGTH)))

    @task
    def pulls() -> None:
        ti = get_current_context()["ti"]
        assert ti.xcom_pull(task_ids="pushes", key="model").weights.sum() == LENGTH
        assert ti.xcom_pull(task_ids=["pushes", "train"], key="model")[1] is None
        assert ti.xcom_pull(task_ids="nobody") is None

    predict(train())
    pushes() >> pulls()


@dag(schedule=None)
def xcom_teardown():
    @setup
    def make() -> Any:
        return np.ones(LENGTH)

    @task
    def work(value: Any) -> None:
        assert value.sum() == LENGTH

    @teardown
    def clean(value: Any) -> None:
        assert value.sum() == LENGTH

    made = make()
    work(made) >> clean(made)


@dag(schedule=None)
def xcom_large():
    @task
    def large() -> Any:
        return np.ones(50 * LENGTH)

    @task
    def maps(value: Any) -> dict[str, int]:
        """How many bytes this process maps of which file, while it has the value."""
        assert value.sum() == value.size
        found: dict[str, int] = defaultdict(int)
        for line in Path("/proc/self/maps").read_text().splitlines():
            addresses, *_, path = line.split(maxsplit=5)
            begin, end = (int(address, 16) for address in addresses.split("-"))
            found[path] += end - begin
        return dict(found)

    maps(large())


@dag(schedule=None, params={"number": 1})
def xcom_producer():
    @task
    def produce() -> Any:
        return np.full(LENGTH, get_current_context()["params"]["number"])

    produce()


@dag(schedule=None)
def xcom_consumer():
    @task
    def consume() -> int:
        context = get_current_context()
        conf = context["dag_run"].conf
        found = context["ti"].xcom_pull(dag_id=conf["dag_id"], run_id=conf["run_id"], task_ids=conf["task_id"])
        return int(found[0])

    consume()


@dag(schedule=None)
def xcom_bad():
    @task
    def unpicklable() -> Any:
        import threading

        return {"model": {"lock": threading.Lock()}}

    @task
    def pushes_a_generator() -> None:
        get_current_context()["ti"].xcom_push("numbers", (n for n in range(3)))

    @task
    def larger_than_memory_and_disk() -> Any:
        return np.empty(1 << 33, dtype=np.uint8)  # as long as nobody touches it, it takes no room

    unpicklable()
    pushes_a_generator()
    larger_than_memory_and_disk()


for factory in (
    xcom_mapped, xcom_over_one_value, xcom_arguments, xcom_outputs, xcom_classes, xcom_teardown, xcom_large,
    xcom_producer, xcom_consumer, xcom_bad,
):  # fmt: skip
    factory()
