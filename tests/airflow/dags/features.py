"""What Airflow can do with a task: one DAG, whose every state is known."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import (
    Asset,
    BaseOperator,
    BaseSensorOperator,
    Connection,
    Param,
    Variable,
    dag,
    setup,
    task,
    task_group,
    teardown,
)
from airflow.sdk.exceptions import AirflowSkipException


def note(context, what, name=None):
    with open(Path(context["dag_run"].conf["folder"]) / "called", "a") as file:
        file.write(f"{what} {name or context['ti'].task_id}\n")


class Defers(BaseOperator):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.log.info("It is made")

    def execute(self, context):
        self.log.error("It defers")
        self.defer(
            trigger=TimeDeltaTrigger(timedelta(seconds=0.1)), method_name="resume", kwargs={"before": os.getpid()}
        )

    def resume(self, context, event, before):
        return before != os.getpid()


class PokesTwice(BaseSensorOperator):
    def poke(self, context):
        file = Path(context["dag_run"].conf["folder"]) / "poked"
        there = file.exists()
        file.touch()
        return there


@dag(
    schedule=None,
    params={"number": Param(7, type="integer")},
    render_template_as_native_obj=True,
    on_failure_callback=lambda c: note(c, "failure", "of the run"),
)
def features():
    Defers(task_id="defers")
    PokesTwice(task_id="reschedules", mode="reschedule", poke_interval=0.1)

    @task
    def three():
        return [1, 2, 3]

    @task
    def double(x):
        return 2 * x

    @task
    def total(xs):
        return sum(xs)

    total(double.expand(x=three()))

    @task.branch
    def branches():
        return "taken"

    (
        branches()
        >> [EmptyOperator(task_id="taken"), EmptyOperator(task_id="not_taken")]
        >> EmptyOperator(task_id="joins", trigger_rule="none_failed_min_one_success")
    )

    @task.short_circuit
    def short_circuits():
        return False

    short_circuits() >> EmptyOperator(task_id="cut_off")

    @task
    def skips():
        raise AirflowSkipException("no need")

    @task(trigger_rule="all_done")
    def runs_all_the_same():
        return 1

    skips() >> runs_all_the_same()

    @task(
        retries=2,
        retry_delay=timedelta(seconds=0.1),
        retry_exponential_backoff=True,
        on_retry_callback=lambda c: note(c, "retry"),
    )
    def retries(ti=None):
        if ti.try_number < 3:
            raise ValueError("not yet")

    retries()

    @task(execution_timeout=timedelta(seconds=0.3), on_failure_callback=lambda c: note(c, "failure"))
    def times_out():
        time.sleep(60)  # longer than it may take

    timed_out = times_out()
    timed_out >> EmptyOperator(task_id="upstream_fails")
    [timed_out, EmptyOperator(task_id="is_fine")] >> EmptyOperator(task_id="sees_a_failure", trigger_rule="one_failed")
    timed_out >> EmptyOperator(task_id="sees_only_failures", trigger_rule="all_failed")

    @task(on_success_callback=lambda c: note(c, "success"), do_xcom_push=False)
    def calls_back():
        return 1

    calls_back()

    @setup
    def sets_up():
        return "resource"

    @teardown(on_failure_fail_dagrun=False)
    def tears_down():
        return "gone"

    @task
    def fails():
        sys.exit(3)

    sets_up() >> fails() >> tears_down()

    @task.bash
    def bash():
        return "echo $((6 * 7))"

    bash()
    BashOperator(task_id="templates", bash_command="echo {{ params.number + 1 }} {{ ti.task_id }}")

    @task.external_python(python=sys.executable, expect_airflow=False)
    def elsewhere(x):
        return x + 1

    elsewhere(1)

    @task.virtualenv(requirements=[], expect_airflow=False, system_site_packages=False)
    def in_an_environment_of_its_own(x):
        import sys

        return [x + 1, sys.prefix != sys.base_prefix, "airflow" in sys.modules]

    in_an_environment_of_its_own(1)

    @task(multiple_outputs=True)
    def several():
        return {"a": 1, "b": [2]}

    @task
    def reads(a, b):
        return [a, b]

    outputs = several()
    reads(outputs["a"], outputs["b"])

    @task(outlets=[Asset("headrace_features")])
    def updates(outlet_events=None):
        outlet_events[Asset("headrace_features")].extra = {"rows": 3}

    updates()

    @task_group
    def group():
        @task
        def inner():
            return "in"

        inner()

    group()

    @task
    def configured():
        return [Variable.get("from_environment"), Connection.get("from_environment").host, os.environ.get("MINE")]

    @task
    def configured_elsewhere():
        return [Variable.get("from_backend"), Connection.get("from_backend").host]

    configured_elsewhere()

    configured()

    @task
    def sees_no_secret():
        names = ("AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN")
        return [os.environ.get(name, "") for name in names]

    sees_no_secret()

    @task
    def unpicklable_and_large():
        print("x" * 3_000_000)
        sys.stdout.write("no newline at the end")
        return "y" * 100

    unpicklable_and_large()

    @task
    def forks():
        if os.fork() == 0:
            os._exit(5)
        os.wait()

    forks()

    @task
    def numbers():
        import random

        return random.random()

    [numbers.override(task_id=f"random_{n}")() for n in range(2)]

    @task(pool="one_at_a_time")
    def takes_its_turn():
        return time.time()

    for priority in (1, 9, 5):
        takes_its_turn.override(task_id=f"priority_{priority}", priority_weight=priority)()


features()
