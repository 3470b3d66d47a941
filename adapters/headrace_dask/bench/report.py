"""The report in a terminal: a row as soon as a workload is done, then the starts, the bounds and what went wrong.

Every line fits in 120 columns with up to nine schedulers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from headrace_dask.bench.bounds import Verdict, check, geometric_mean
from headrace_dask.bench.records import Cell, Report, WorkloadRecord
from headrace_dask.bench.schedulers import AUTO

WIDTH = 120
HEADS = {
    "processes": "procs",
    "distributed": "distrib",
    "headrace:auto": "HEADRACE",
    "headrace:inline": "h:inline",
    "headrace:threads": "h:thread",
    "headrace:processes": "h:procs",
}
NAME_WIDTH, CELL_WIDTH = 12, 10


def seconds(value: float) -> str:
    """Three digits and a unit, at most seven characters."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return f"{value * 1e6:.0f} µs"


def size(value: int) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def cell_text(cell: Cell, bound_s: float) -> str:
    if cell.status == "ok":
        mark = {"different": "≠", "close": "~"}.get(cell.equality, "")
        return f"{mark}{seconds(cell.value_s)}"
    return {"timeout": f"> {bound_s:.0f} s", "failed": "failed", "missing": "-"}[cell.status]


class Terminal:
    """Writes to a stream; on a terminal, also a line that says what runs right now."""

    def __init__(self, schedulers: Sequence[str], bound_s: float, out: TextIO | None = None) -> None:
        self._schedulers = schedulers
        self._bound_s = bound_s
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._names = NAME_WIDTH

    def now(self, text: str) -> None:
        if self._live:
            self._out.write(f"\r\x1b[K{text[: WIDTH - 1]}")
            self._out.flush()

    def line(self, text: str = "") -> None:
        self._out.write(("\r\x1b[K" if self._live else "") + text.rstrip() + "\n")
        self._out.flush()

    def begin(self, names: Sequence[str]) -> None:
        """The head of the table. The first column is as wide as the names of workloads need, within limits."""
        room = WIDTH - CELL_WIDTH * len(self._schedulers) - 8
        self._names = max(NAME_WIDTH, min(room, max(map(len, names), default=0) + 1))
        heads = "".join(
            HEADS.get(name, name.partition(":")[0][: CELL_WIDTH - 1]).rjust(CELL_WIDTH) for name in self._schedulers
        )
        self.line(f"{'':{self._names}}{heads}{'to best':>8}")

    def row(self, record: WorkloadRecord) -> None:
        cells = "".join(cell_text(record.cells[name], self._bound_s).rjust(CELL_WIDTH) for name in self._schedulers)
        ratio = record.auto_ratio()
        self.line(f"{record.name[: self._names - 1]:{self._names}}{cells}{f'{ratio:.2f}x' if ratio else '':>8}")

    def end(self, report: Report) -> None:
        self._legend(report)
        self._memory(report)
        self._starts(report)
        self._bounds(check(report))
        self._troubles(report)
        mean = geometric_mean(report)
        if mean is not None:
            counted = sum(record.auto_ratio() is not None for record in report.workloads.values())
            of = f"{counted} of {len(report.workloads)} workloads"
            self.line()
            self.line(f"Headrace (auto): {mean:.2f} times as fast as the best stock scheduler, geometric mean of {of}.")

    def _legend(self, report: Report) -> None:
        self.line()
        machine = report.machine
        self.line(
            f"Median of up to {report.options['repeats']} runs after a first one, dask's optimisation included, "
            f"on {machine['cores']} cores of {machine['cpu']}."
        )
        if AUTO in report.schedulers:
            self.line(
                "to best: HEADRACE (lane auto) against the fastest stock scheduler of the row; below 1 is faster."
            )
        marks = {cell.equality for record in report.workloads.values() for cell in record.cells.values()}
        if "close" in marks:
            self.line("~ equal but for rounding: sums in another order, as when BLAS has another number of threads.")
        if "different" in marks:
            self.line("≠ a DIFFERENT RESULT: the time does not count.")
        if machine.get("busy_with_others", 0) > 0.1:
            self.line(
                f"Other programs used {machine['busy_with_others']:.0%} of the machine meanwhile: repeat when idle."
            )

    def _memory(self, report: Report) -> None:
        measured = [r for r in report.workloads.values() if any(cell.peak_bytes for cell in r.cells.values())]
        if not measured:
            return
        self.line()
        self.line("Peak memory of the whole process tree (PSS, and shared memory before it is mapped)")
        for record in measured:
            peaks = [record.cells[name].peak_bytes for name in self._schedulers]
            cells = "".join((size(peak) if peak else "").rjust(CELL_WIDTH) for peak in peaks)
            self.line(f"{record.name[: self._names - 1]:{self._names}}{cells}")

    def _starts(self, report: Report) -> None:
        if not report.starts:
            return
        self.line()
        self.line("Fresh processes: each line counts from the end of the one above it")
        lines = (
            ("import", "import_s"),
            ("start", "start_s"),
            ("10 tasks", "first_s"),
        )
        for title, figure in lines:
            self.line(self._start_line(report, title, figure))
        self.line(self._start_line(report, "python400", "python_s") + "  start included")

    def _start_line(self, report: Report, title: str, figure: str) -> str:
        cells = []
        for name in self._schedulers:
            record = report.starts.get(name)
            value = getattr(record, figure) if record and not record.error else None
            cells.append(("" if value is None else seconds(value) if value >= 1e-4 else "0").rjust(CELL_WIDTH))
        return f"{title:{self._names}}{''.join(cells)}"

    def _bounds(self, verdicts: Sequence[Verdict]) -> None:
        self.line()
        self.line("What Headrace promises (2 cores, ratios of medians)")
        for verdict in verdicts:
            if verdict.met is not None:
                mark = "met   " if verdict.met else "MISSED"
                self.line(f"  {mark} {verdict.what:54.54} {verdict.bound:>9}   {verdict.measured[:44]}")
        skipped = sum(verdict.met is None for verdict in verdicts)
        if skipped:
            self.line(f"  {skipped} more were not measured in this run.")

    def _troubles(self, report: Report) -> None:
        troubles = [
            f"{record.name} on {name}: {cell.error}"
            for record in report.workloads.values()
            for name, cell in record.cells.items()
            if cell.error and cell.status in ("failed", "ok")
        ]
        troubles += [f"start of {name}: {record.error}" for name, record in report.starts.items() if record.error]
        missing = {
            cell.error for r in report.workloads.values() for cell in r.cells.values() if cell.status == "missing"
        }
        if troubles or missing:
            self.line()
            for trouble in (*dict.fromkeys(troubles), *sorted(missing)):
                self.line(f"! {trouble}"[:WIDTH])
