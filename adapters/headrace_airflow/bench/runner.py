"""Runs workloads on every variant in turn, round after round, each time in Airflows that have just come up.

Invariants: only one Airflow exists at any time; every variant begins with a run that is not counted, on the same kind
of fresh database; a variant that failed on a workload is not run on it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from headrace.observe import conditions
from headrace_airflow.bench.airflow import RealAirflow
from headrace_airflow.bench.databases import Database
from headrace_airflow.bench.measures import WorkloadFailed, measure, succeed
from headrace_airflow.bench.records import Report
from headrace_airflow.bench.workloads import DAGS, WARM_UP, Variant, Workload

PACKAGES = ("headrace", "apache-airflow", "apache-airflow-task-sdk", "numpy", "pandas", "pyarrow", "psycopg2-binary")
"""Those whose versions the report names."""
Say = Callable[[str], None]


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
        versions = conditions.describe_versions(PACKAGES)
        report = Report(databases.name, conditions.describe_machine(), versions, plan.rounds)
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
        succeed(airflow, airflow.run(WARM_UP))
        for workload in pending:
            cell = cells[workload.name]
            try:
                say(f"{variant.name}, {workload.name}: {measure(airflow, databases, workload, cell)}")
            except (WorkloadFailed, TimeoutError) as error:
                cell.error = str(error).splitlines()[0]
                say(f"{variant.name}, {workload.name}: {cell.error}")
