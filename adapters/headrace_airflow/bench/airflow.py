"""A real Airflow for as long as a ``with`` block lasts: database, API server, DAG processor, scheduler, triggerer.

    with Sqlite() as databases, RealAirflow(databases, dags=folder, executor="LocalExecutor") as airflow:
        run = airflow.run("my_dag")
        assert run.state == "success"

Every component is a process in a session of its own, with Airflow's default settings but for directories, ports and
keys. Whatever is waited for is a condition that can be named. When the block ends nothing is left: no process, however
it came into being, no file, no port.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx

from headrace_airflow.bench.client import FINISHED, ApiClient, ApiError, DagRun, TaskInstance, as_text, errors_in
from headrace_airflow.bench.databases import Database, migrate_with
from headrace_airflow.bench.home import AIRFLOW, AirflowHome
from headrace_airflow.bench.processes import Family, Process
from headrace_airflow.bench.waiting import wait_until

COMPONENTS = ("api-server", "dag-processor", "scheduler", "triggerer")
IN_HEALTH = {"dag-processor": "dag_processor", "scheduler": "scheduler", "triggerer": "triggerer"}
LIMIT_S = 120.0
LOOK_S = 0.2
"""How often the API server is asked for the state of a run: 1% of a core."""


class RealAirflow:
    """An Airflow of one's own, running inside the block.

    Args:
        databases: where it takes its database from.
        dags: a directory whose contents are copied to its DAGs folder, or none.
        executor: what ``AIRFLOW__CORE__EXECUTOR`` shall be.
        settings: more variables of its environment.
        components: which of the components to start.
    """

    def __init__(
        self,
        databases: Database,
        *,
        dags: Path | None = None,
        executor: str = "LocalExecutor",
        settings: Mapping[str, str] | None = None,
        components: Sequence[str] = COMPONENTS,
    ) -> None:
        self._databases = databases
        self._wanted = components
        self.family = Family()
        folder = Path(tempfile.mkdtemp(prefix="hr-airflow-"))
        self.family.remove_at_end(folder)
        self.home = AirflowHome(folder, {"AIRFLOW__CORE__EXECUTOR": executor, **(settings or {})})
        if dags:
            shutil.copytree(dags, self.home.dags, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        self.database_url = ""
        self.environment: dict[str, str] = {}
        self.api = ApiClient(self.home.url)
        self.components: dict[str, Process] = {}
        self._unpaused: set[str] = set()

    def __enter__(self) -> RealAirflow:
        try:
            self.database_url = self._databases.fresh(migrate_with(AIRFLOW, self.home.environment()))
            self.environment = self.home.environment(self.database_url)
            self.start(*self._wanted)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills all of it and removes its files and its database. Does nothing the second time.

        An orderly end takes Airflow ten seconds and more; who wants to see one calls :meth:`stop` before.
        """
        self.api.close()
        self.family.close()
        if self.database_url:
            self._databases.discard(self.database_url)
            self.database_url = ""

    # Components

    def start(self, *names: str, wait: bool = True) -> None:
        """Starts components and waits until they say that they work (those that do not run need an API server for it).

        Raises:
            ProcessDied: one has ended instead; with the last of what it printed.
            TimeoutError: one does not say so in time.
        """
        began = datetime.now(timezone.utc)
        for name in names:
            self.components[name] = self.family.start(
                [*AIRFLOW, name],
                env=self.environment,
                cwd=self.home.folder,
                log=self.home.logs / f"{name}.txt",
            )
        if wait and names:
            self.wait_until(lambda: self._are_up(names, began), f"{', '.join(names)} up")

    def stop(self, *names: str, number: int = signal.SIGTERM) -> None:
        """Stops components, all at the same time; returns when their processes have ended."""
        for name in names:
            self.components[name].send(number)
        for name in names:
            self.components.pop(name).stop(number, timeout_s=30.0)

    def kill(self, name: str) -> None:
        """SIGKILL for a component's first process, and for no other. :meth:`start` starts it anew."""
        self.components.pop(name).kill()

    def restart(self, name: str, number: int = signal.SIGTERM) -> None:
        """Stops a component and starts it anew, with the environment of before."""
        self.stop(name, number=number)
        self.start(name)

    def _are_up(self, names: Iterable[str], began: datetime) -> bool:
        for name in names:
            self.components[name].check(name)
        try:
            health = self.api.get("/monitor/health")
        except (httpx.TransportError, httpx.HTTPStatusError, ApiError):
            return False
        return all(_is_healthy(health[IN_HEALTH[name]], IN_HEALTH[name], began) for name in names if name in IN_HEALTH)

    # DAGs and their runs

    def write_dag(self, name: str, source: str) -> Path:
        """Puts a file into the DAGs folder, or another in its place, as a deployment would: at once and whole."""
        path = self.home.dags / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_text(source)
        unfinished.replace(path)
        return path

    def wait_for_dags(
        self,
        dag_ids: Collection[str],
        *,
        since: datetime | None = None,
        broken_too: bool = False,
        timeout_s: float = LIMIT_S,
    ) -> None:
        """Waits until the DAG processor has parsed these DAGs.

        Args:
            dag_ids: all of them must be there.
            since: a moment after which they must have been parsed.
            broken_too: files that cannot be imported may be there as well.
            timeout_s: how long to wait.

        Raises:
            ImportError: a file of the DAGs folder cannot be imported.
        """

        def are_there() -> bool:
            if not broken_too:
                self._check_imports()
            parsed = {dag["dag_id"]: dag for dag in self.api.pages("/dags", "dags", exclude_stale="true")}
            return all(_is_parsed(parsed.get(dag_id), since) for dag_id in dag_ids)

        self.wait_until(are_there, f"DAGs {', '.join(sorted(dag_ids))} parsed", timeout_s, every_s=LOOK_S)

    def import_errors(self) -> dict[str, str]:
        """The files that cannot be imported, with the traceback of each."""
        return {error["filename"]: error["stack_trace"] for error in self.api.pages("/importErrors", "import_errors")}

    def _check_imports(self) -> None:
        for filename, trace in self.import_errors().items():
            raise ImportError(f"{filename}:\n{trace}")

    def trigger(
        self, dag_id: str, conf: Mapping[str, Any] | None = None, *, logical_date: datetime | None = None
    ) -> DagRun:
        """Asks for a run of a DAG that is there, and has the scheduler look at it if it is paused."""
        if dag_id not in self._unpaused:
            self.wait_for_dags({dag_id})
            self.api.set_paused(dag_id, False)
            self._unpaused.add(dag_id)
        return self.api.trigger(dag_id, conf or {}, logical_date)

    def run(self, dag_id: str, conf: Mapping[str, Any] | None = None, *, timeout_s: float = LIMIT_S) -> DagRun:
        """Runs a DAG to its end, whatever that is."""
        return self.wait(self.trigger(dag_id, conf), timeout_s=timeout_s)

    def wait(self, run: DagRun, states: Collection[str] = FINISHED, *, timeout_s: float = LIMIT_S) -> DagRun:
        """Waits until a run is in one of these states; an API server that is away meanwhile is waited for.

        Raises:
            TimeoutError: it is not, in time; with the states of its tasks.
        """
        found = [run]

        def has_come() -> bool:
            found[0] = self.api.dag_run(run)
            return found[0].state in states

        self.wait_until(self._if_there(has_come), f"{run.dag_id} in {sorted(states)}", timeout_s, run, LOOK_S)
        return found[0]

    def wait_for_task(
        self, run: DagRun, task_id: str, states: Collection[str], *, map_index: int = -1, timeout_s: float = LIMIT_S
    ) -> TaskInstance:
        """Waits until a task of a run is in one of these states."""
        found: list[TaskInstance] = []

        def has_come() -> bool:
            found[:] = [self.task(run, task_id, map_index=map_index)]
            return found[0].state in states

        what = f"{run.dag_id}.{task_id} in {sorted(states)}"
        self.wait_until(self._if_there(has_come), what, timeout_s, run, LOOK_S)
        return found[0]

    def tasks(self, run: DagRun) -> list[TaskInstance]:
        return self.api.tasks(run)

    def task(self, run: DagRun, task_id: str, *, map_index: int = -1) -> TaskInstance:
        """Raises LookupError if the run has no such task instance."""
        for task in self.tasks(run):
            if (task.task_id, task.map_index) == (task_id, map_index):
                return task
        raise LookupError(f"{run.dag_id} has no task {task_id}[{map_index}]")

    def xcom(self, run: DagRun, task_id: str, key: str = "return_value", *, map_index: int = -1) -> Any:
        """What the database holds as a task's XCom."""
        return self.api.xcom(run, task_id, key, map_index)

    def log(self, run: DagRun, task_id: str, try_number: int = 1, *, map_index: int = -1) -> str:
        """A task's log as text."""
        return as_text(self.api.log(run, task_id, try_number, map_index))

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Runs a statement on the database; returns its rows."""
        import sqlalchemy

        engine = sqlalchemy.create_engine(self.database_url, poolclass=sqlalchemy.pool.NullPool)
        with engine.begin() as connection:
            result = connection.execute(sqlalchemy.text(statement), values)
            return list(result) if result.returns_rows else []

    def why(self, run: DagRun) -> str:
        """The first task of a run that failed, with the last error in its log, in one line."""
        for task in self.tasks(run):
            if task.state == "failed":
                errors = errors_in(self.api.log(run, task.task_id, task.try_number, task.map_index))
                return " ".join(f"{task.name} failed: {errors[-1] if errors else 'without a word'}".split())[:300]
        return f"{run.dag_id} ended as {run.state}"

    # Waiting

    def wait_until(
        self,
        condition: Callable[[], Any],
        what: str,
        timeout_s: float = LIMIT_S,
        run: DagRun | None = None,
        every_s: float = LOOK_S,
    ) -> None:
        """As :func:`headrace_airflow.bench.waiting.wait_until`, with what the components printed in the error."""
        wait_until(condition, what, timeout_s, every_s=every_s, detail=lambda: self.describe(run))

    @staticmethod
    def _if_there(condition: Callable[[], bool]) -> Callable[[], bool]:
        def guarded() -> bool:
            try:
                return condition()
            except httpx.TransportError:
                return False

        return guarded

    def describe(self, run: DagRun | None = None) -> str:
        """What somebody wants to see when something does not come: states of tasks, last lines of the components."""
        parts = []
        if run:
            try:
                parts = [f"{task.name}: {task.state}, try {task.try_number}" for task in self.tasks(run)]
            except (httpx.TransportError, ApiError) as error:
                parts = [f"the API server: {error}"]
        for name, process in self.components.items():
            how = "running" if process.is_running else f"ended with {process.exit_code}"
            parts.append(f"--- {name} ({how}):\n{process.last_words()}")
        return "\n".join(parts)


def _is_healthy(health: Mapping[str, Any], field: str, began: datetime) -> bool:
    latest = health.get(f"latest_{field}_heartbeat")
    return health["status"] == "healthy" and latest is not None and datetime.fromisoformat(latest) >= began


def _is_parsed(dag: Mapping[str, Any] | None, since: datetime | None) -> bool:
    if dag is None or dag["is_stale"]:
        return False
    parsed = dag["last_parsed_time"]
    return since is None or (parsed is not None and datetime.fromisoformat(parsed) >= since)
