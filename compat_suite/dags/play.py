"""One pass: a fresh Airflow with its example DAGs, a run of each, and what came of every task and XCom."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta, timezone
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
"""How often runs are looked at: Airflow tells nobody when one has ended."""
CUT_OFF = "did not end in time"
SETTINGS = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": "True",
    "AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE": "False",  # only what is asked for runs
    "AIRFLOW__CORE__MAX_TEMPLATED_FIELD_LENGTH": "4096",
}


def play(
    databases: Database,
    variant: Variant,
    recipe: Recipe,
    dag_ids: Collection[str],
    say: Callable[[str], None],
    rounds: int = 1,
) -> list[Runs]:
    """Runs DAGs on a variant; blocks until all have ended or their time is up.

    Returns:
        The facts of each DAG, for each round. A run that was cut off has that for its only fact: what it came to
        depends on the clock.
    """
    began = time.monotonic()
    with RealAirflow(databases, executor=variant.executor, settings={**SETTINGS, **variant.settings}) as airflow:
        airflow.wait_for_dags(recipe.dags, broken_too=True, timeout_s=300)
        for dag_id in recipe.dags:
            airflow.api.set_paused(dag_id, False)
        found: list[dict[str, Facts]] = [{} for _ in range(rounds)]
        ended = _run_all(
            airflow, recipe, [(turn, dag_id) for turn in range(rounds) for dag_id in sorted(dag_ids)], found
        )
        xcoms = _xcoms(airflow)
        for turn, run in ended:
            found[turn][run.dag_id] = _facts(airflow, run, xcoms.get(f"{run.dag_id} {run.run_id}", {}))
    cut_off = sum(facts == {"state": CUT_OFF} for runs in found for facts in runs.values())
    say(f"{variant.name}: {rounds} × {len(dag_ids)} DAGs in {time.monotonic() - began:.0f} s, {cut_off} cut off")
    return list(found)


def _run_all(
    airflow: RealAirflow, recipe: Recipe, waiting: list[tuple[int, str]], found: list[dict[str, Facts]]
) -> list[tuple[int, DagRun]]:
    """Keeps a number of runs going until all have had their turn.

    Args:
        airflow: where they run.
        recipe: says how long one may take.
        waiting: (round, DAG), in the order in which they begin.
        found: for each round, gets what is known of runs that Airflow refuses.
    """
    active: dict[str, tuple[int, DagRun, float]] = {}
    ended: list[tuple[int, DagRun]] = []
    while waiting or active:
        while waiting and len(active) < AT_ONCE:
            turn, dag_id = waiting.pop(0)
            try:
                run = airflow.api.trigger(dag_id, {}, _moment(recipe.logical_dates.get(dag_id), turn))
            except ApiError as error:
                found[turn][dag_id] = {"state": f"refused: {str(error).partition(': ')[2]}"}
                continue
            active[run.run_id + dag_id] = turn, run, time.monotonic() + recipe.limit_s
        unfinished = set(_unfinished(airflow))
        for name, (turn, run, deadline) in list(active.items()):
            if name not in unfinished or time.monotonic() > deadline:
                del active[name]
                ended.append((turn, airflow.api.dag_run(run)))
        time.sleep(LOOK_S)  # no call of the API waits for the end of a run
    return ended


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


def _moment(date: str | None, turn: int) -> datetime | None:
    """A DAG has no two runs of one logical date: each round has the next day."""
    return datetime.fromisoformat(date).replace(tzinfo=timezone.utc) + timedelta(days=turn) if date else None
