"""Runs the same DAGs on Airflow's own executor and on Headrace: the same states and results, and how long each took.

``python -m headrace_airflow.bench.demo examples`` starts a real Airflow on SQLite for either, one after the other. A
DAG that needs Headrace's XCom backend is compared with its counterpart that does without.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace_airflow.bench.airflow import RealAirflow
from headrace_airflow.bench.databases import Sqlite
from headrace_airflow.bench.workloads import STOCK, VARIANTS, Variant

HEADRACE = VARIANTS[-1]
PATIENT = {"AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300"}
"""Stock imports pandas and scikit-learn anew in every task; on a busy machine that is too slow for Airflow's 30 s."""
WIDTH = 24


@dataclass(frozen=True, slots=True)
class Show:
    """A DAG to run.

    Args:
        dag_id: on Headrace.
        results: the tasks whose values are compared.
        stock_id: on the stock executor, which may need another way to the same end.
    """

    dag_id: str
    results: Sequence[str]
    stock_id: str = ""

    def on(self, variant: Variant) -> str:
        return self.stock_id or self.dag_id if variant is STOCK else self.dag_id


SHOWS = (
    Show("program", ("func1", "func2", "func3")),
    Show("flights_in_files", ("delays", "report")),
    Show("flights_in_memory", ("delays", "report"), stock_id="flights_in_files"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run."""

    dag_id: str
    state: str
    why: str
    makespan_s: float
    tasks: Mapping[str, tuple[str | None, int]]
    results: Mapping[str, Any]


def main(argv: Sequence[str]) -> int:
    """Returns 0 if both executors came to the same states and results, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m headrace_airflow.bench.demo", description="Runs the same DAGs on both."
    )
    parser.add_argument("dags", type=Path, help="the folder with the DAGs")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    options = parser.parse_args(argv)
    began = time.monotonic()
    outcomes = {variant.name: play(variant, options.dags) for variant in (STOCK, HEADRACE)}
    faults = compare(outcomes[STOCK.name], outcomes[HEADRACE.name])
    _say(*table(outcomes[STOCK.name], outcomes[HEADRACE.name]), *faults, f"took {time.monotonic() - began:.0f} s")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {name: {dag: asdict(run) for dag, run in runs.items()} for name, runs in outcomes.items()}
        options.json.write_text(json.dumps(figures, indent=1))
    return int(bool(faults))


def play(variant: Variant, dags: Path) -> dict[str, Outcome]:
    """Every DAG of the show on one executor, in a fresh Airflow: ``dag_id`` on Headrace → what came of it."""
    _say(f"Airflow with {variant.executor} starts ...")
    found: dict[str, Outcome] = {}
    with (
        Sqlite() as databases,
        RealAirflow(
            databases,
            executor=variant.executor,
            settings={**PATIENT, **variant.settings},
            components=("api-server", "dag-processor"),
        ) as airflow,
    ):
        for file in sorted(dags.glob("airflow_*.py")):
            airflow.write_dag(file.name, file.read_text())
        airflow.start("scheduler")
        done: dict[str, Outcome] = {}
        for show in SHOWS:
            dag_id = show.on(variant)
            if dag_id not in done:
                done[dag_id] = _run(airflow, dag_id, show.results)
                _say(f"  {dag_id}: {done[dag_id].state}, {done[dag_id].makespan_s:.1f} s")
            found[show.dag_id] = done[dag_id]
    return found


def _run(airflow: RealAirflow, dag_id: str, results: Sequence[str]) -> Outcome:
    run = airflow.run(dag_id, timeout_s=600)
    tasks = {task.name: (task.state, task.try_number) for task in airflow.tasks(run)}
    values = {name: airflow.xcom(run, name) for name in results} if run.state == "success" else {}
    why = "" if run.state == "success" else airflow.why(run)
    return Outcome(dag_id, run.state, why, run.makespan_s, tasks, values)


def compare(stock: Mapping[str, Outcome], headrace: Mapping[str, Outcome]) -> list[str]:
    """What differs, in words; a run that did not succeed is a fault, too."""
    faults = []
    for dag_id, ours in headrace.items():
        theirs = stock[dag_id]
        faults += [
            f"! {run.dag_id} ended as {run.state}: {run.why}" for run in (theirs, ours) if run.state != "success"
        ]
        if ours.tasks != theirs.tasks:
            differing = {
                name for name in {*ours.tasks, *theirs.tasks} if ours.tasks.get(name) != theirs.tasks.get(name)
            }
            faults.append(f"! {dag_id}: other states or tries of {', '.join(sorted(differing))}")
        faults += [
            f"! {dag_id}: {name} is {value!r:.200}, not {theirs.results.get(name)!r:.200}"
            for name, value in ours.results.items()
            if value != theirs.results.get(name)
        ]
    return faults


def table(stock: Mapping[str, Outcome], headrace: Mapping[str, Outcome]) -> list[str]:
    """Makespans side by side."""
    lines = ["", f"{'makespan, seconds':<{WIDTH}}{'LocalExecutor':>16}{'Headrace':>16}{'ratio':>8}"]
    for dag_id, ours in headrace.items():
        theirs = stock[dag_id]
        ratio = ours.makespan_s / theirs.makespan_s
        note = f"   LocalExecutor: {theirs.dag_id}" if theirs.dag_id != dag_id else ""
        lines.append(f"{dag_id:<{WIDTH}}{theirs.makespan_s:>16.2f}{ours.makespan_s:>16.2f}{ratio:>8.2f}{note}")
    return [*lines, ""]


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
