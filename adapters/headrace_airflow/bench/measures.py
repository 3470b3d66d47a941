"""Runs one workload once on an Airflow that is up, checks what came of it, and notes the figures in a cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from headrace_airflow.bench.airflow import RealAirflow
from headrace_airflow.bench.client import DagRun
from headrace_airflow.bench.databases import Database, Postgres
from headrace_airflow.bench.processes import command_line, pss_bytes
from headrace_airflow.bench.records import Cell
from headrace_airflow.bench.workloads import Workload

_LOOKS = (0.2, 0.5, 1.0)
"""After which parts of many runs memory is looked at; after the first of them it shall no longer grow."""
_REST_S = 10.0
_AT_REST = 0.01
"""Memory that is no more than this part of it away from what it was ``_REST_S`` ago has come to rest."""


class WorkloadFailed(Exception):
    """A run ended otherwise than it should; the message says how, in one line."""


def measure(airflow: RealAirflow, databases: Database, workload: Workload, cell: Cell) -> str:
    """Blocks until the workload has ended; returns what was found, in one line.

    Raises:
        WorkloadFailed: it ended otherwise than it should.
        TimeoutError: it did not end in time.
    """
    if workload.kind == "memory":
        return _memory(airflow, workload, cell)
    if workload.kind == "many":
        return _many(airflow, databases, workload, cell)
    if workload.kind == "restarts":
        return _restarts(airflow, workload)
    return _time(airflow, databases, workload, cell)


def succeed(airflow: RealAirflow, run: DagRun) -> None:
    """Raises WorkloadFailed unless a run has succeeded."""
    if run.state != "success":
        raise WorkloadFailed(airflow.why(run))


def _time(airflow: RealAirflow, databases: Database, workload: Workload, cell: Cell) -> str:
    first = airflow.run(workload.dag_id, timeout_s=workload.limit_s)
    succeed(airflow, first)
    before_s = _cpu_s(airflow, databases)
    run = airflow.run(workload.dag_id, timeout_s=workload.limit_s)
    cpu_s = (_cpu_s(airflow, databases) - before_s) / workload.tasks
    succeed(airflow, run)
    if workload.result:
        task_id, expected = workload.result
        found = airflow.xcom(run, task_id)
        if found != expected:
            raise WorkloadFailed(f"wrong result: {found!r:.100} instead of {expected!r}")
    cell.firsts_s.append(first.makespan_s)
    cell.makespans_s.append(run.makespan_s)
    cell.cpu_s.append(cpu_s)
    cell.tasks_s += _tasks_s(airflow, run)
    return f"{run.makespan_s:.2f} s, the first time {first.makespan_s:.2f} s, {1000 * cpu_s:.0f} ms CPU a task"


def _memory(airflow: RealAirflow, workload: Workload, cell: Cell) -> str:
    file = airflow.home.temporary / "wake-up"
    run = airflow.trigger(workload.dag_id, {"file": str(file)})

    def all_run() -> bool:
        states = [task.state for task in airflow.tasks(run)]
        if "failed" in states:
            raise WorkloadFailed(airflow.why(run))
        return states.count("running") == workload.tasks

    airflow.wait_until(all_run, f"{workload.tasks} tasks running", workload.limit_s, every_s=1.0)
    pss = _resting_bytes(airflow, workload.limit_s)
    pids = airflow.family.pids()
    file.touch()
    succeed(airflow, airflow.wait(run, timeout_s=workload.limit_s))
    cell.pss_bytes.append(pss)
    cell.processes.append(len(pids))
    return f"{len(pids)} processes, {pss / 1e6:,.0f} MB"


def _resting_bytes(airflow: RealAirflow, limit_s: float) -> int:
    """Memory of all when tasks have started, and what was needed only for that has been given back."""
    seen: list[int] = []

    def rests() -> bool:
        seen.append(airflow.family.pss_bytes())
        return len(seen) > 1 and abs(seen[-1] - seen[-2]) <= _AT_REST * seen[-2]

    airflow.wait_until(rests, "memory at rest", limit_s, every_s=_REST_S)
    return seen[-1]


def _many(airflow: RealAirflow, databases: Database, workload: Workload, cell: Cell) -> str:
    file = airflow.home.temporary / "many"
    file.unlink(missing_ok=True)
    before_s = _cpu_s(airflow, databases)
    runs = [airflow.trigger(workload.dag_id, {"file": str(file)}) for _ in range(workload.times)]
    memory = [(0, _lasting_bytes(airflow))]
    looks = {int(part * len(runs)) for part in _LOOKS}
    ended = []
    for run in runs:
        ended.append(airflow.wait(run, timeout_s=workload.limit_s))
        succeed(airflow, ended[-1])
        if len(ended) in looks:
            memory.append((len(ended), _lasting_bytes(airflow)))
    cpu_s = (_cpu_s(airflow, databases) - before_s) / (workload.tasks * workload.times)
    _check_once(file, workload.tasks * workload.times)
    growth_bytes = sum(memory[-1][1].values()) - sum(memory[1][1].values())
    ends = [run.end_date for run in ended if run.end_date]
    starts = [run.queued_at for run in ended if run.queued_at]
    makespan_s = (max(ends) - min(starts)).total_seconds()
    cell.makespans_s.append(makespan_s)
    cell.cpu_s.append(cpu_s)
    cell.growth_bytes.append(growth_bytes)
    cell.memory += memory
    return f"{makespan_s:.1f} s, {1000 * cpu_s:.0f} ms CPU a task, {growth_bytes / 1e6:+.1f} MB: {_course(memory)}"


def _restarts(airflow: RealAirflow, workload: Workload) -> str:
    file = airflow.home.temporary / "restarts"
    gate = file.with_suffix(".gate")
    for old in (file, gate):
        old.unlink(missing_ok=True)
    run = airflow.trigger(workload.dag_id, {"file": str(file)})
    airflow.wait_until(lambda: len(_said(file)) >= workload.tasks, "all tasks running", workload.limit_s, run)
    for _ in range(workload.times):
        airflow.kill("scheduler")
        airflow.start("scheduler")
    gate.touch()
    succeed(airflow, airflow.wait(run, timeout_s=workload.limit_s))
    _check_once(file, workload.tasks)
    return f"{workload.tasks} tasks ran once each"


def _said(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _check_once(file: Path, count: int) -> None:
    """Whether so many tasks have said that they run, each once and in its first try."""
    said = Counter(_said(file))
    again = [line for line, times in said.items() if times > 1 or not line.endswith(" 1")]
    if again or len(said) != count:
        raise WorkloadFailed(f"{len(said)} of {count} tasks ran, {len(again)} more than once: {again[:3]}")


def _tasks_s(airflow: RealAirflow, run: DagRun) -> list[float]:
    times = [(task.queued_at, task.end_date) for task in airflow.tasks(run)]
    return [(end - queued).total_seconds() for queued, end in times if queued and end]


def _lasting_bytes(airflow: RealAirflow) -> dict[str, int]:
    """Memory of the scheduler and of the node daemon, if there is one."""
    daemons = [pid for pid in airflow.family.pids() if "headrace_airflow.daemon" in command_line(pid)]
    return {
        "scheduler": pss_bytes(airflow.components["scheduler"].pid),
        "daemon": sum(map(pss_bytes, daemons)),
    }


def _course(memory: Sequence[tuple[int, dict[str, int]]]) -> str:
    """Each one's memory over the runs, in words."""
    names = memory[0][1]
    courses = (f"{name} {' → '.join(f'{sizes[name] / 1e6:.0f}' for _, sizes in memory)}" for name in names)
    return f"{', '.join(courses)} after {', '.join(str(count) for count, _ in memory)} runs"


def _cpu_s(airflow: RealAirflow, databases: Database) -> float:
    return airflow.family.cpu_s() + (databases.family.cpu_s() if isinstance(databases, Postgres) else 0.0)
