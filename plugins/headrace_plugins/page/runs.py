"""The newest DAG runs in the database, with their tasks and the gaps between these. Only reads."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from airflow.models.dag import DagModel
from airflow.models.dagbag import DBDagBag
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskreschedule import TaskReschedule
from sqlalchemy import exists, func, select, tuple_

from headrace_plugins.page.gaps import gap_s, summary

Upstream: TypeAlias = Mapping[str, Collection[str]]
"""Task → the tasks right before it."""

_RUNS: Final = 8
_TASKS: Final = 500
"""... of all runs together; the newest."""
_SHAPES: Final = 64


def files(session: Any, dags: Collection[str]) -> set[tuple[str, str]]:
    """Bundle and path of the files in which DAGs stand."""
    query = select(DagModel.bundle_name, DagModel.relative_fileloc).where(DagModel.dag_id.in_(dags))
    return {(bundle, path) for bundle, path in session.execute(query.distinct())}


class Runs:
    """Keeps the shapes of the last DAGs that came up: a version of a DAG has one shape. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shapes: dict[Any, Upstream] = {}

    def newest(self, session: Any, dags: Collection[str]) -> list[dict[str, Any]]:
        """The runs of some DAGs that were made last and have started, the newest first. Blocks for some queries.

        Args:
            session: of the metadata database.
            dags: the ids of the DAGs.
        """
        query = select(DagRun).where(DagRun.dag_id.in_(dags), DagRun.start_date.is_not(None))
        runs = list(session.scalars(query.order_by(DagRun.id.desc()).limit(_RUNS)))
        keys = [(run.dag_id, run.run_id) for run in runs]
        ends, tasks = _ends(session, keys), _tasks(session, keys)
        return [self._describe(session, run, tasks[key], ends[key]) for run, key in zip(runs, keys, strict=True)]

    def _describe(
        self, session: Any, run: Any, tasks: list[dict[str, Any]], ends: Mapping[str, float | None]
    ) -> dict[str, Any]:
        upstream = self._shape(session, run)
        for task in tasks:
            before = upstream.get(task["task_id"], ())
            task["gap_s"] = gap_s(task["state"], task.pop("first"), task["start"], before, ends)
        return {
            "dag_id": run.dag_id,
            "run_id": run.run_id,
            "state": str(run.state),
            "start": _seconds(run.start_date),
            "end": _seconds(run.end_date),
            "tasks": tasks,
            "gaps": summary([task["gap_s"] for task in tasks if task["gap_s"] is not None]),
        }

    def _shape(self, session: Any, run: Any) -> Upstream:
        key = run.created_dag_version_id
        if (known := self._shapes.get(key)) is not None:  # in one step: another thread may let go of it
            return known
        dag = DBDagBag(load_op_links=False).get_dag_for_run(run, session=session)
        shape = {task.task_id: tuple(task.upstream_task_ids) for task in dag.tasks} if dag else {}
        if key is not None:
            with self._lock:
                self._shapes[key] = shape
                if len(self._shapes) > _SHAPES:
                    del self._shapes[next(iter(self._shapes))]
        return shape


def _ends(session: Any, keys: list[tuple[str, str]]) -> dict[tuple[str, str], dict[str, float | None]]:
    """For each run: when all instances of a task had ended."""
    ti = TaskInstance
    columns = (ti.dag_id, ti.run_id, ti.task_id)
    query = select(*columns, func.max(ti.end_date), func.count(), func.count(ti.end_date))
    found: dict[tuple[str, str], dict[str, float | None]] = {key: {} for key in keys}
    for dag_id, run_id, task_id, end, count, ended in session.execute(_of_runs(query, keys).group_by(*columns)):
        found[dag_id, run_id][task_id] = _seconds(end) if count == ended else None
    return found


def _tasks(session: Any, keys: list[tuple[str, str]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """For each run: the tasks that have started, in the order in which they did."""
    ti = TaskInstance
    columns = (ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.state, ti.try_number, ti.start_date, ti.end_date)
    rescheduled = exists().where(TaskReschedule.ti_id == ti.id)
    query = _of_runs(select(*columns, rescheduled), keys).where(ti.start_date.is_not(None))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in keys}
    newest = list(session.execute(query.order_by(ti.start_date.desc()).limit(_TASKS)))
    for dag_id, run_id, task_id, map_index, state, try_number, start, end, again in reversed(newest):
        found[dag_id, run_id].append({
            "task_id": task_id,
            "map_index": map_index,
            "state": None if state is None else str(state),
            "try_number": try_number,
            "start": _seconds(start),
            "end": _seconds(end),
            "first": try_number == 1 and not again,
        })  # fmt: skip
    return found


def _of_runs(query: Any, keys: list[tuple[str, str]]) -> Any:
    return query.where(tuple_(TaskInstance.dag_id, TaskInstance.run_id).in_(keys))


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
