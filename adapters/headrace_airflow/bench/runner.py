"""Runs workloads on every variant in turn, round after round, each time in Airflows that have just come up.

Invariants: only one Airflow exists at any time; every variant begins with a run that is not counted, on the same kind
of fresh database; a variant that failed on a workload is not run on it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from headrace_airflow.bench.airflow import RealAirflow
from headrace_airflow.bench.client import DagRun
from headrace_airflow.bench.databases import Database, Postgres
from headrace_airflow.bench.machine import describe_machine, describe_versions
from headrace_airflow.bench.records import Cell, Report
from headrace_airflow.bench.workloads import DAGS, WARM_UP, Variant, Workload

Say = Callable[[str], None]


class WorkloadFailed(Exception):
    """A run ended otherwise than it should; the message says how, in one line."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, how often, on which kind of database."""

    variants: Sequence[Variant]
    workloads: Sequence[Workload]
    rounds: int
    databases: Callable[[], Database]


def run(plan: Plan, say: Say) -> Report:
    """Blocks until everything was measured.

    Args:
        plan: what to run.
        say: is told about progress, a line at a time.
    """
    began = time.monotonic()
    with plan.databases() as databases:
        report = Report(databases.name, describe_machine(), describe_versions(), plan.rounds)
        for turn in range(1, plan.rounds + 1):
            say(f"round {turn} of {plan.rounds}")
            for workloads in _alike(plan.workloads):
                for variant in plan.variants:
                    _run_variant(report, databases, variant, workloads, say)
    report.took_s = time.monotonic() - began
    return report


def _alike(workloads: Sequence[Workload]) -> Iterator[list[Workload]]:
    """Groups of workloads that can share an Airflow."""
    for _, group in groupby(workloads, key=lambda workload: sorted(workload.settings.items())):
        yield list(group)


def _run_variant(
    report: Report, databases: Database, variant: Variant, workloads: Sequence[Workload], say: Say
) -> None:
    cells = {workload.name: report.cell(workload.name, variant.name) for workload in workloads}
    pending = [workload for workload in workloads if not cells[workload.name].error]
    if not pending:
        return
    settings: Mapping[str, str] = {**variant.settings, **pending[0].settings}
    with RealAirflow(databases, dags=DAGS, executor=variant.executor, settings=settings) as airflow:
        airflow.wait_for_dags({workload.dag_id for workload in pending})
        _succeed(airflow, airflow.run(WARM_UP))
        for workload in pending:
            cell = cells[workload.name]
            try:
                measure = _measure_memory if workload.sleeps else _measure_time
                say(f"{variant.name}, {workload.name}: {measure(airflow, databases, workload, cell)}")
            except (WorkloadFailed, TimeoutError) as error:
                cell.error = str(error).splitlines()[0]
                say(f"{variant.name}, {workload.name}: {cell.error}")


def _measure_time(airflow: RealAirflow, databases: Database, workload: Workload, cell: Cell) -> str:
    before_s = _cpu_s(airflow, databases)
    run = airflow.run(workload.dag_id, timeout_s=workload.limit_s)
    cpu_s = (_cpu_s(airflow, databases) - before_s) / workload.tasks
    _succeed(airflow, run)
    if workload.result:
        task_id, expected = workload.result
        found = airflow.xcom(run, task_id)
        if found != expected:
            raise WorkloadFailed(f"wrong result: {found!r:.100} instead of {expected!r}")
    cell.makespans_s.append(run.makespan_s)
    cell.cpu_s.append(cpu_s)
    return f"{run.makespan_s:.2f} s, {1000 * cpu_s:.0f} ms CPU a task"


def _measure_memory(airflow: RealAirflow, databases: Database, workload: Workload, cell: Cell) -> str:
    file = airflow.home.temporary / "wake-up"
    run = airflow.trigger(workload.dag_id, {"file": str(file)})

    def all_run() -> bool:
        states = [task.state for task in airflow.tasks(run)]
        if "failed" in states:
            raise WorkloadFailed(airflow.why(run))
        return states.count("running") == workload.tasks

    airflow.wait_until(all_run, f"{workload.tasks} tasks running", workload.limit_s, every_s=1.0)
    pids = airflow.family.pids()
    pss = airflow.family.pss_bytes()
    file.touch()
    _succeed(airflow, airflow.wait(run, timeout_s=workload.limit_s))
    cell.pss_bytes.append(pss)
    cell.processes.append(len(pids))
    return f"{len(pids)} processes, {pss / 1e6:,.0f} MB"


def _cpu_s(airflow: RealAirflow, databases: Database) -> float:
    return airflow.family.cpu_s() + (databases.family.cpu_s() if isinstance(databases, Postgres) else 0.0)


def _succeed(airflow: RealAirflow, run: DagRun) -> None:
    if run.state != "success":
        raise WorkloadFailed(airflow.why(run))
