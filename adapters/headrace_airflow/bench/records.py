"""What the benchmark measures, as plain records that go into its JSON file as they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any


@dataclass(slots=True)
class Cell:
    """One variant on one workload, over all rounds.

    Args:
        makespans_s: from the request for a run to its end, as Airflow recorded both.
        firsts_s: the same of the DAG's first run, where a second one is what counts.
        cpu_s: of all processes together, the database's too, for one task.
        pss_bytes: memory of all Airflow's processes, what they share counted once, while all tasks ran.
        processes: how many these were.
        tasks_s: of every task, from when it was queued to its end, as Airflow recorded both.
        growth_bytes: by how much the scheduler and the node daemon have grown over many runs, once warmed up.
        memory: how large each of the two was meanwhile, with how many runs had ended: ``(runs, {name: bytes})``.
        error: why there is nothing, in one line.
    """

    makespans_s: list[float] = field(default_factory=list)
    firsts_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    pss_bytes: list[int] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    tasks_s: list[float] = field(default_factory=list)
    growth_bytes: list[int] = field(default_factory=list)
    memory: list[tuple[int, dict[str, int]]] = field(default_factory=list)
    error: str = ""

    @property
    def slow_tasks_s(self) -> list[float]:
        """How long the slowest tenth of the tasks takes at least: one figure, or none."""
        return [quantiles(self.tasks_s, n=10)[-1]] if len(self.tasks_s) > 1 else []

    def figure(self, name: str) -> float | None:
        """The median of what was measured, or None."""
        values: list[float] = getattr(self, name)
        return median(values) if values and not self.error else None


@dataclass(slots=True)
class Report:
    """A whole run: ``cells[workload][variant]``."""

    database: str
    machine: dict[str, Any]
    versions: dict[str, str]
    rounds: int
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)
    took_s: float = 0.0

    def cell(self, workload: str, variant: str) -> Cell:
        return self.cells.setdefault(workload, {}).setdefault(variant, Cell())

    def ratio(self, workload: str, variant: str, to: str, name: str) -> float | None:
        """How many times another variant's figure this one's is; None if one of them has none."""
        cells = self.cells.get(workload, {})
        if variant not in cells or to not in cells:
            return None
        ours, theirs = cells[variant].figure(name), cells[to].figure(name)
        return ours / theirs if ours is not None and theirs else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
