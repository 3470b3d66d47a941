"""What is made of the figures: the table, the bounds, the chart."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from headrace_dask.bench.bounds import check, geometric_mean
from headrace_dask.bench.chart import draw
from headrace_dask.bench.records import Cell, Report, StartRecord, WorkloadRecord
from headrace_dask.bench.report import Terminal, seconds
from headrace_dask.bench.schedulers import AUTO, HEADRACE, PEERS, STOCK

EVERY = [*STOCK, *PEERS, *HEADRACE]


def record(name: str, **times: float) -> WorkloadRecord:
    cells = {
        s: Cell(first_s=1, seconds=[times.get(s.replace("headrace:", "h_"), 1.0)], equality="equal") for s in EVERY
    }
    return WorkloadRecord(name, f"title of {name}", tasks=10, reference="sync", cells=cells)


@pytest.fixture
def report() -> Report:
    machine = {"cores": 2, "cpu": "Some Processor"}
    made = Report(machine, {"python": "3.11", "dask": "1"}, {"repeats": 5, "bound_s": 60.0}, EVERY)
    for one in (
        record("inc10k", sync=0.2, threads=0.6, distributed=18, ray=20, h_auto=0.05, h_processes=0.1),
        record("tree4k", sync=0.2, h_auto=0.1),
        record("arrays16", threads=0.4, sync=0.5, h_auto=0.5, h_processes=0.7),
    ):
        made.workloads[one.name] = one
    made.starts = {name: StartRecord(import_s=0.01, first_s=0.02, python_s=1.0) for name in EVERY}
    return made


def verdicts(report: Report) -> dict[str, tuple[str, bool | None]]:
    return {verdict.what: (verdict.measured, verdict.met) for verdict in check(report)}


def test_bounds_are_met_missed_or_not_measured(report: Report) -> None:
    found = verdicts(report)
    assert found["inc10k: faster than sync"] == ("4.00x", True)
    assert found["inc10k: faster than distributed"] == ("360.00x", True)
    assert found["inc10k forced to processes, a task"] == ("10 µs", True)
    assert found["tree4k: auto against sync"] == ("0.50x", True)
    assert found["chain2k: auto against sync"] == ("not measured", None)
    assert found["arrays16: auto against threads"] == ("1.25x", False)
    assert found["arrays16: forced to processes, threads"] == ("1.75x", False)
    assert found["auto against the best stock, worst workload"] == ("1.25x arrays16", False)
    assert found["python400 in a fresh process, workers' start counted"] == ("1.00x", False)
    assert found["first result in a fresh process"] == ("20 ms", True)
    assert found["peak memory against threads"] == ("not measured", None)
    assert found["Headrace finishes with the results of stock"] == ("all", True)


def test_the_geometric_mean_is_over_the_best_stock_scheduler_of_each(report: Report) -> None:
    expected = (0.2 / 0.05 * 0.2 / 0.1 * 0.4 / 0.5) ** (1 / 3)
    assert geometric_mean(report) == pytest.approx(expected)


def test_what_gave_a_wrong_result_is_nobodys_best(report: Report) -> None:
    wrong = report.workloads["arrays16"].cells["threads"]
    wrong.equality = "different"
    assert report.workloads["arrays16"].best_stock() == "sync"
    assert report.workloads["arrays16"].auto_ratio() == 1.0
    report.workloads["tree4k"].cells[AUTO].status = "failed"
    assert verdicts(report)["Headrace finishes with the results of stock"] == (f"tree4k on {AUTO}", False)


def test_memory_is_compared_with_threads(report: Report) -> None:
    cells = report.workloads["arrays16"].cells
    cells["threads"].peak_bytes, cells[AUTO].peak_bytes = 100_000_000, 150_000_000
    assert verdicts(report)["peak memory against threads, worst: arrays16"] == ("1.50x", False)


def printed(report: Report) -> list[str]:
    out = io.StringIO()
    terminal = Terminal(report.schedulers, 60.0, out)
    terminal.begin(list(report.workloads))
    for one in report.workloads.values():
        terminal.row(one)
    terminal.end(report)
    return out.getvalue().splitlines()


def test_every_line_fits_in_120_columns_and_troubles_are_shown(report: Report) -> None:
    cells = report.workloads["inc10k"].cells
    cells["processes"] = Cell("failed", error="RecursionError: " + "too deep " * 40)
    cells["distributed"] = Cell("timeout", error="did not finish in time")
    cells["ray"] = Cell("missing", error="ray.util.dask is not installed")
    cells["threads"].equality = "different"
    cells["threads"].error = "its result differs from that of sync"
    cells[AUTO].peak_bytes = 1_500_000_000
    report.machine["busy_with_others"] = 0.5
    lines = printed(report)
    assert max(map(len, lines)) <= 120
    row = next(line for line in lines if line.startswith("inc10k"))
    assert " ".join(row.split()) == "inc10k 200 ms ≠600 ms failed > 60 s - 50.0 ms 1.00 s 1.00 s 100 ms 0.25x"
    text = "\n".join(lines)
    for part in ("DIFFERENT RESULT", "RecursionError", "not installed", "1.50 GB", "50% of the machine"):
        assert part in text


def test_workloads_with_long_names_leave_the_table_in_its_width(report: Report) -> None:
    report.workloads = {"x": record("package.module_of_mine:make_graph_of_mine" * 2)}
    assert max(map(len, printed(report))) <= 120


def test_the_json_has_medians_and_ratios(report: Report) -> None:
    plain = json.loads(json.dumps(report.as_json()))
    assert plain["workloads"]["inc10k"]["best_stock"] == "sync"
    assert plain["workloads"]["inc10k"]["auto_to_best_stock"] == 0.25
    assert plain["workloads"]["inc10k"]["cells"][AUTO]["median_s"] == 0.05


@pytest.mark.usefixtures("fonts")
def test_the_chart_is_drawn_even_if_nothing_worked(report: Report, tmp_path: Path) -> None:
    for number, broken in enumerate((False, True)):
        if broken:
            for one in report.workloads.values():
                one.cells = {name: Cell("failed", error="no") for name in one.cells}
        path = tmp_path / f"{number}.png"
        draw(report, path)
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 µs"), (1.5e-5, "15 µs"), (0.0123, "12.3 ms"), (0.5, "500 ms"), (1.234, "1.23 s"), (61, "61.0 s")],
)
def test_times_have_three_digits(value: float, text: str) -> None:
    assert seconds(value) == text
