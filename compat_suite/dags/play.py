"""One pass: a fresh Airflow with its example DAGs, a run of each, and what came of every task and XCom."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from compat_suite.dags.compare import Facts, Runs
from compat_suite.dags.recipe import Recipe
from headrace_airflow.bench.airflow import RealAirflow
from headrace_airflow.bench.client import ApiError, DagRun
from headrace_airflow.bench.databases import Database
from headrace_airflow.bench.workloads import Variant

AT_ONCE = 8
"""Runs at the same time: enough to use the cores while sensors and deferred tasks wait."""
LOOK_S = 0.5
CUT_OFF = "did not end in time"
SETTINGS = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": "True",
    "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",  # only what is asked for runs
    "AIRFLOW__CORE__MAX_TEMPLATED_FIELD_LENGTH": "4096",
}


def play(
    databases: Database, variant: Variant, recipe: Recipe, dag_ids: Collection[str], say: Callable[[str], None]
) -> Runs:
    """Runs DAGs on a variant; blocks until all have ended or their time is up.

    Returns:
        The facts of each. A run that was cut off has that for its only fact: what it came to depends on the clock.
    """
    began = time.monotonic()
    with RealAirflow(databases, executor=variant.executor, settings={**SETTINGS, **variant.settings}) as airflow:
        airflow.wait_for_dags(recipe.dags, broken_too=True, timeout_s=300)
        for dag_id in recipe.dags:
            airflow.api.set_paused(dag_id, False)
        runs, refused = _run_all(airflow, recipe, dag_ids)
        xcoms = _xcoms(airflow)
        facts: dict[str, Facts] = {dag_id: {"state": f"refused: {why}"} for dag_id, why in refused.items()}
        for run in runs:
            facts[run.dag_id] = _facts(airflow, run, xcoms.get(f"{run.dag_id} {run.run_id}", {}))
    cut_off = sum(found == {"state": CUT_OFF} for found in facts.values())
    say(f"{variant.name}: {len(facts)} DAGs in {time.monotonic() - began:.0f} s, {cut_off} cut off")
    return facts


def _run_all(airflow: RealAirflow, recipe: Recipe, dag_ids: Collection[str]) -> tuple[list[DagRun], dict[str, str]]:
    """Keeps a number of runs going until all have had their turn."""
    waiting = sorted(dag_ids)
    active: dict[str, tuple[DagRun, float]] = {}
    ended: list[DagRun] = []
    refused: dict[str, str] = {}
    while waiting or active:
        while waiting and len(active) < AT_ONCE:
            dag_id = waiting.pop(0)
            try:
                run = airflow.api.trigger(dag_id, {}, _moment(recipe.logical_dates.get(dag_id)))
            except ApiError as error:
                refused[dag_id] = str(error).partition(": ")[2]
                continue
            active[run.run_id + dag_id] = run, time.monotonic() + recipe.limit_s
        unfinished = set(_unfinished(airflow))
        for name, (run, deadline) in list(active.items()):
            if name not in unfinished or time.monotonic() > deadline:
                del active[name]
                ended.append(airflow.api.dag_run(run))
        time.sleep(LOOK_S)
    return ended, refused


def _unfinished(airflow: RealAirflow) -> Iterable[str]:
    for run in airflow.api.pages("/dags/~/dagRuns", "dag_runs", state=["queued", "running"]):
        yield run["dag_run_id"] + run["dag_id"]


def _facts(airflow: RealAirflow, run: DagRun, xcoms: Mapping[str, str]) -> Facts:
    if run.state in ("queued", "running"):
        return {"state": CUT_OFF}
    found = {"state": run.state}
    for task in airflow.tasks(run):
        found[f"task {task.name}"] = f"{task.state}, try {task.try_number}"
    for name, value in xcoms.items():
        found[f"xcom {name}"] = value.replace(str(airflow.home.folder), "AIRFLOW_HOME")
    return found


def _xcoms(airflow: RealAirflow) -> dict[str, dict[str, str]]:
    """Every XCom as a task would get it: through the backend of this Airflow, in a process with its environment."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("xcoms.py"))],
        env=airflow.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    values: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return values


def _moment(date: str | None) -> datetime | None:
    return datetime.fromisoformat(date).replace(tzinfo=timezone.utc) if date else None
