"""What is measured, as plain records that go into the JSON file as they are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from headrace_dask.bench.schedulers import AUTO, HEADRACE

Status = Literal["ok", "failed", "timeout", "missing"]


@dataclass(slots=True)
class Cell:
    """One scheduler on one workload.

    Args:
        status: ``failed`` raised or died, ``timeout`` exceeded the bound, ``missing`` is not installed.
        error: why it is not ``ok``, in one line.
        first_s: the first run of this workload in the scheduler's process.
        seconds: the runs after that; empty if the first was so slow that it was not repeated.
        equality: how its results compare with the reference's: equal, close (within the tolerance), different.
        peak_bytes: memory of the whole process tree at its largest, in a run of its own: PSS, and shared memory before
            it is mapped; 0 if not measured.
    """

    status: Status = "ok"
    error: str = ""
    first_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    equality: str = ""
    peak_bytes: int = 0

    @property
    def value_s(self) -> float:
        """The median of the repeats; the first run if there were none."""
        return median(self.seconds) if self.seconds else self.first_s

    @property
    def counts(self) -> bool:
        return self.status == "ok" and self.equality != "different"


@dataclass(slots=True)
class WorkloadRecord:
    """All schedulers on one workload; ``optimise_s`` is dask's own share of every run that begins with a collection."""

    name: str
    title: str
    tasks: int = 0
    optimise_s: float = 0.0
    reference: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)

    def best_stock(self) -> str | None:
        """The fastest scheduler that is not Headrace's and gave the right result."""
        stock = [name for name, cell in self.cells.items() if name not in HEADRACE and cell.counts]
        return min(stock, key=lambda name: self.cells[name].value_s, default=None)

    def ratio(self, scheduler: str, to: str | None) -> float | None:
        """How many times the other's time this one takes; None if either has no right result."""
        cell, other = self.cells.get(scheduler), self.cells.get(to) if to else None
        if cell is None or other is None or not (cell.counts and other.counts):
            return None
        return cell.value_s / other.value_s

    def wrongs(self) -> list[str]:
        """Headrace's lanes that failed, took too long or gave another result where a stock scheduler did well."""
        if self.best_stock() is None:
            return []
        broken = (name for name, cell in self.cells.items() if cell.status != "missing" and not cell.counts)
        return [name for name in broken if name in HEADRACE]

    def auto_ratio(self) -> float | None:
        return self.ratio(AUTO, self.best_stock())


@dataclass(slots=True)
class StartRecord:
    """A scheduler in fresh processes: medians in seconds, each counted from the end of the one before.

    Args:
        import_s: its import, beyond ``import dask``.
        start_s: until it says that it can take work (a cluster's start); 0 for those that start lazily.
        first_s: a graph of ten tasks, the first of the process.
        python_s: 400 pure-Python tasks as the first graph of a process, with whatever must be started for them.
        error: why there are no figures, in one line.
    """

    import_s: float = 0.0
    start_s: float = 0.0
    first_s: float = 0.0
    python_s: float = 0.0
    error: str = ""


@dataclass(slots=True)
class Report:
    """A whole run of the benchmark."""

    machine: dict[str, Any]
    versions: dict[str, str]
    options: dict[str, Any]
    schedulers: list[str]
    starts: dict[str, StartRecord] = field(default_factory=dict)
    workloads: dict[str, WorkloadRecord] = field(default_factory=dict)
    took_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        plain = asdict(self)
        for name, record in self.workloads.items():
            plain["workloads"][name]["best_stock"] = record.best_stock()
            plain["workloads"][name]["auto_to_best_stock"] = record.auto_ratio()
            for scheduler, cell in record.cells.items():
                value = cell.value_s if cell.status == "ok" else None
                plain["workloads"][name]["cells"][scheduler]["median_s"] = value
        return plain
