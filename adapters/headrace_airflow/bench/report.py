"""The tables that the benchmark prints. Pure: records in, lines out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace_airflow.bench.records import Report
from headrace_airflow.bench.workloads import BY_NAME, STOCK

FIGURES = (
    ("makespans_s", "makespan, seconds", 1.0, ",.2f"),
    ("firsts_s", "the same, a DAG's first run", 1.0, ",.2f"),
    ("cpu_s", "CPU of all processes, milliseconds a task", 1000.0, ",.0f"),
    ("tasks_s", "a task, from queued to its end, milliseconds", 1000.0, ",.0f"),
    ("slow_tasks_s", "the same, 90th percentile", 1000.0, ",.0f"),
    ("pss_bytes", "memory of all processes (PSS), megabytes", 1e-6, ",.0f"),
    ("growth_bytes", "growth of the scheduler and the daemon, megabytes", 1e-6, "+,.1f"),
)
WIDTH = 44


def lines(report: Report, variants: Sequence[str]) -> Iterator[str]:
    """A table a figure: medians, and in brackets how many times the stock executor's each is."""
    machine, versions = report.machine, report.versions
    yield (
        f"Airflow {versions.get('apache-airflow')}, {report.database}, Python {versions['python']}, "
        f"{machine['cores']} cores, {machine['memory_gb']} GB; medians of {report.rounds}"
    )
    for name, title, factor, form in FIGURES:
        rows = [workload for workload in report.cells if _has(report, workload, name)]
        if not rows:
            continue
        yield ""
        yield f"{title:<{WIDTH}}" + "".join(f"{variant:>22}" for variant in variants)
        for workload in rows:
            cells = (_cell(report, workload, variant, name, factor, form) for variant in variants)
            yield f"{BY_NAME[workload].title:<{WIDTH}}" + "".join(f"{cell:>22}" for cell in cells)
    troubles = list(_troubles(report))
    yield from (["", *troubles] if troubles else [])


def _has(report: Report, workload: str, name: str) -> bool:
    return any(cell.figure(name) is not None for cell in report.cells[workload].values())


def _cell(report: Report, workload: str, variant: str, name: str, factor: float, form: str) -> str:
    cell = report.cells[workload].get(variant)
    value = cell.figure(name) if cell else None
    if value is None:
        return "failed" if cell and cell.error else "-"
    compared = variant != STOCK.name and name != "growth_bytes"
    ratio = report.ratio(workload, variant, STOCK.name, name) if compared else None
    return f"{value * factor:{form}}" + (f" ({ratio:.2f})" if ratio is not None else "")


def _troubles(report: Report) -> Iterator[str]:
    for workload, cells in report.cells.items():
        for variant, cell in cells.items():
            if cell.error:
                yield f"! {variant}, {workload}: {cell.error}"
