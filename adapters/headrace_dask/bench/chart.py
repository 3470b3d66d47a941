"""The report as a picture: every workload a row, every scheduler a mark, times relative to the best stock scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace_dask.bench.bounds import geometric_mean
from headrace_dask.bench.records import Report, WorkloadRecord
from headrace_dask.bench.report import seconds
from headrace_dask.bench.schedulers import AUTO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {
    "sync": ("o", "#8c8c8c", "sync"),
    "threads": ("s", "#1f77b4", "threads"),
    "processes": ("^", "#9467bd", "processes"),
    "distributed": ("D", "#e6960c", "distributed"),
    "ray": ("v", "#17a2b8", "Ray"),
    "headrace:auto": ("*", "#d62728", "Headrace"),
    "headrace:inline": ("1", "#f4a3a3", "Headrace, inline"),
    "headrace:threads": ("2", "#e87b7b", "Headrace, threads"),
    "headrace:processes": ("3", "#b04040", "Headrace, processes"),
}
OTHER = ("P", "#2ca02c")
ROOM = 1.6
"""Free space left and right of the marks, as a factor on the logarithmic axis."""


def need_matplotlib() -> None:
    """Raises ModuleNotFoundError, with what it is for, if there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401  whether it is there
    except ModuleNotFoundError:
        raise ModuleNotFoundError("a chart needs matplotlib") from None


def draw(report: Report, path: Path) -> None:
    """Writes the chart; its suffix says in which format."""
    from matplotlib.figure import Figure

    records = list(report.workloads.values())
    figure = Figure(figsize=(11, 2.4 + 0.42 * len(records)), layout="constrained")
    axes = figure.subplots()
    _rows(axes, report, records)
    _frame(axes, report, records)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130, facecolor="white")


def _rows(axes: Axes, report: Report, records: list[WorkloadRecord]) -> None:
    """Draws the marks; beyond the largest ratio there is room for what has none."""
    ratios: dict[str, list[tuple[int, float]]] = {name: [] for name in report.schedulers}
    for row, record in enumerate(records):
        to = record.best_stock() or (AUTO if record.ratio(AUTO, AUTO) else None)
        for name in report.schedulers:
            if (ratio := record.ratio(name, to)) is not None:
                ratios[name].append((row, ratio))
        if (auto := record.ratio(AUTO, to)) is not None:
            axes.plot([1, auto], [row, row], color=STYLES[AUTO][1], linewidth=3, alpha=0.35, zorder=2)
    every = [ratio for marks in ratios.values() for _, ratio in marks]
    farthest = max(every, default=1.0)
    for name, marks in ratios.items():
        marker, colour, label = STYLES.get(name, (*OTHER, name))
        auto = name == AUTO
        axes.scatter(
            [ratio for _, ratio in marks],
            [row for row, _ in marks],
            marker=marker,
            color=colour,
            label=label,
            s=170 if auto else 70 if marker in "123" else 42,
            zorder=4 if auto else 3,
        )
    for row, record in enumerate(records):
        _annotate(axes, record, row, report, farthest)
    axes.set_xlim(min([*every, 1.0]) / ROOM, farthest * ROOM)


def _annotate(axes: Axes, record: WorkloadRecord, row: int, report: Report, farthest: float) -> None:
    """Right of the row: how long the two that matter took, and who failed."""
    best = record.best_stock()
    parts = []
    if record.ratio(AUTO, AUTO):
        parts.append(f"Headrace {seconds(record.cells[AUTO].value_s)}")
    if best:
        parts.append(f"{STYLES.get(best, (*OTHER, best))[2]} {seconds(record.cells[best].value_s)}")
    axes.text(1.01, row, ", ".join(parts), transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)
    wrong = {"timeout": f"> {report.options['bound_s']:.0f} s", "failed": "failed"}
    notes = [
        f"{STYLES.get(name, (*OTHER, name))[2]}: {wrong.get(cell.status, 'different result')}"
        for name, cell in record.cells.items()
        if cell.status in wrong or (cell.status == "ok" and not cell.counts)
    ]
    if notes:
        axes.text(
            farthest * ROOM, row - 0.31, "; ".join(notes) + " ", ha="right", va="center", fontsize=7.5, color="#777777"
        )


def _frame(axes: Axes, report: Report, records: list[WorkloadRecord]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1, zorder=1)
    axes.set_ylim(len(records) - 0.5, -0.6)
    axes.set_yticks(range(len(records)), [record.title for record in records], fontsize=9.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for row in range(len(records)):
        axes.axhline(row + 0.5, color="#eeeeee", linewidth=0.8, zorder=0)
    axes.set_xlabel("time relative to the best stock scheduler of the row (logarithmic; left is faster)")
    mean = geometric_mean(report)
    headline = "dask schedulers side by side"
    if mean is not None:
        headline = f"Headrace: {mean:.2f} times as fast as the best stock scheduler of each row (geometric mean)"
    machine, versions = report.machine, report.versions
    axes.figure.suptitle(headline, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    axes.set_title(
        f"{machine['cores']} cores, {machine['cpu']}; Python {versions['python']}, dask {versions.get('dask', '?')}; "
        f"medians of up to {report.options['repeats']}",
        fontsize=8.5,
        color="#555555",
    )
