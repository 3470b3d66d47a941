"""What Headrace has promised to reach, as a list of checks over a report: ratios of medians that were taken in one run.

A check that the report holds no figures for gives ``met=None``: nothing is claimed that was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, log

from headrace_dask.bench.records import Report
from headrace_dask.bench.schedulers import AUTO, HEADRACE

PROCESSES = "headrace:processes"
THREADS = "threads"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the list: what, the bound in words, what was measured in words, and whether it was met."""

    what: str
    bound: str
    measured: str = "not measured"
    met: bool | None = None


def geometric_mean(report: Report) -> float | None:
    """How many times faster auto is than the best stock scheduler of each workload."""
    ratios = [ratio for record in report.workloads.values() if (ratio := record.auto_ratio())]
    return exp(-sum(map(log, ratios)) / len(ratios)) if ratios else None


def check(report: Report) -> list[Verdict]:
    """Every promise that a benchmark can look at, in the order in which they were made."""
    return [verdict for checks in _CHECKS for verdict in checks(report)]


def _at_most(what: str, value: float | None, limit: float, unit: str = "x") -> Verdict:
    bound = f"<= {_number(limit, unit)}"
    return Verdict(what, bound) if value is None else Verdict(what, bound, _number(value, unit), value <= limit)


def _at_least(what: str, value: float | None, limit: float) -> Verdict:
    bound = f">= {_number(limit, 'x')}"
    return Verdict(what, bound) if value is None else Verdict(what, bound, _number(value, "x"), value >= limit)


def _number(value: float, unit: str) -> str:
    if unit == "ms":
        return f"{value * 1e3:.3g} ms"
    return f"{value * 1e6:.3g} µs" if unit == "µs" else f"{value:.2f}{unit}"


def _ratio(report: Report, workload: str, scheduler: str, to: str) -> float | None:
    record = report.workloads.get(workload)
    return record.ratio(scheduler, to) if record else None


def _faster(report: Report, workload: str, scheduler: str, than: str) -> float | None:
    ratio = _ratio(report, workload, scheduler, than)
    return 1 / ratio if ratio else None


def _results(report: Report) -> Iterator[Verdict]:
    what, bound = "Headrace finishes with the results of stock", "all"
    records = [record for record in report.workloads.values() if record.best_stock()]
    wrong = [f"{record.name} on {name}" for record in records for name in record.wrongs()]
    if not any(
        record.cells[name].status != "missing" for record in records for name in HEADRACE if name in record.cells
    ):
        yield Verdict(what, bound)
    else:
        more = f", {len(wrong) - 2} more" if len(wrong) > 2 else ""
        yield Verdict(what, bound, ", ".join(wrong[:2]) + more if wrong else "all", not wrong)


def _never_slower(report: Report) -> Iterator[Verdict]:
    ratios = {name: ratio for name, record in report.workloads.items() if (ratio := record.auto_ratio())}
    what = "auto against the best stock, worst workload"
    if not ratios:
        yield Verdict(what, "<= 1.05x")
        return
    over = sorted((name for name in ratios if ratios[name] > 1.05), key=lambda name: -ratios[name])
    shown = over or [max(ratios, key=lambda name: ratios[name])]
    measured = ", ".join(f"{ratios[name]:.2f}x {name}" for name in shown[:3]) + (
        f", {len(over) - 3} more" if len(over) > 3 else ""
    )
    yield Verdict(what, "<= 1.05x", measured, not over)


def _faster_on_the_whole(report: Report) -> Iterator[Verdict]:
    yield _at_least("auto against the best stock, geometric mean: faster", geometric_mean(report), 1.5)


def _small_tasks(report: Report) -> Iterator[Verdict]:
    for other, limit in (("sync", 2), ("threads", 5), ("distributed", 100), ("ray", 100)):
        if other in report.schedulers:
            yield _at_least(f"inc10k: faster than {other}", _faster(report, "inc10k", AUTO, other), limit)
    for workload in ("tree4k", "chain2k"):
        yield _at_most(f"{workload}: auto against sync", _ratio(report, workload, AUTO, "sync"), 1.0)
    record = report.workloads.get("inc10k")
    cell = record.cells.get(PROCESSES) if record else None
    per_task = cell.value_s / 10_000 if cell and cell.counts else None
    yield _at_most("inc10k forced to processes, a task", per_task, 15e-6, "µs")


def _python(report: Report) -> Iterator[Verdict]:
    yield _at_most("python400: auto against sync", _ratio(report, "python400", AUTO, "sync"), 0.58)
    cold, sync = report.starts.get(AUTO), report.starts.get("sync")
    measured = cold.python_s / sync.python_s if cold and sync and cold.python_s and sync.python_s else None
    yield _at_most("python400 in a fresh process, workers' start counted", measured, 0.75)


def _large_values(report: Report) -> Iterator[Verdict]:
    for workload in ("arrays16", "array400mb"):
        yield _at_most(f"{workload}: auto against threads", _ratio(report, workload, AUTO, THREADS), 1.05)
        yield _at_most(f"{workload}: forced to processes, threads", _ratio(report, workload, PROCESSES, THREADS), 1.5)


def _starting(report: Report) -> Iterator[Verdict]:
    start = report.starts.get(AUTO)
    fresh = start if start and not start.error else None
    yield _at_most("first result in a fresh process", fresh.start_s + fresh.first_s if fresh else None, 0.030, "ms")
    yield _at_most("import headrace_dask beyond import dask", fresh.import_s if fresh else None, 0.060, "ms")


def _memory(report: Report) -> Iterator[Verdict]:
    ratios = {}
    for name, record in report.workloads.items():
        auto, threads = record.cells.get(AUTO), record.cells.get(THREADS)
        if auto and threads and auto.peak_bytes and threads.peak_bytes:
            ratios[name] = auto.peak_bytes / threads.peak_bytes
    worst = max(ratios, key=lambda name: ratios[name], default="")
    yield _at_most(f"peak memory against threads{f', worst: {worst}' if worst else ''}", ratios.get(worst), 1.2)


_CHECKS: tuple[Callable[[Report], Iterator[Verdict]], ...] = (
    _results,
    _never_slower,
    _faster_on_the_whole,
    _small_tasks,
    _python,
    _large_values,
    _starting,
    _memory,
)
