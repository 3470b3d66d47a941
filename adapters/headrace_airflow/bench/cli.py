"""``headrace bench-airflow``: runs DAGs on a real Airflow, with its own executor and with Headrace's, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from headrace_airflow.bench import report as tables
from headrace_airflow.bench.databases import Database, Postgres, Sqlite
from headrace_airflow.bench.records import Cell
from headrace_airflow.bench.workloads import BY_NAME, LOADS, STOCK, SUITE, VARIANTS, Variant, Workload

DATABASES: dict[str, Callable[[], Database]] = {"postgres": Postgres, "sqlite": Sqlite}


def main(argv: Sequence[str]) -> int:
    """Returns 0 unless Headrace failed where the stock executor did not."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        from headrace_airflow.bench.runner import Plan, run  # here, so that `headrace --help` needs no Airflow
    except ImportError as error:
        parser.error(f"{error}: pip install 'headrace[bench-airflow]'")
    variants = options.variants or [variant for variant in VARIANTS if variant.is_installed]
    workloads = options.workloads or list(SUITE)
    try:
        report = run(Plan(variants, workloads, options.rounds, DATABASES[options.database]), _say)
    except FileNotFoundError as error:
        parser.error(str(error))
    for line in ("", *tables.lines(report, [variant.name for variant in variants]), "", f"took {report.took_s:.0f} s"):
        _say(line)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report.as_json(), indent=1))
        _say(f"figures: {options.json}")
    return int(any(_is_lost(row) for row in report.cells.values()))


def _is_lost(row: Mapping[str, Cell]) -> bool:
    """Whether a variant of Headrace failed on a workload that the stock executor, if it ran, got through."""
    stock = row.get(STOCK.name)
    return not (stock and stock.error) and any(cell.error for cell in row.values())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace bench-airflow", description=__doc__)
    parser.add_argument("--database", choices=DATABASES, default="postgres", help="default: postgres")
    parser.add_argument("--rounds", type=int, default=3, help="how often, of which the median is taken; default 3")
    parser.add_argument(
        "--variants", metavar="A,B", type=_variants, help=f"of {', '.join(v.name for v in VARIANTS)}; default: all"
    )
    parser.add_argument(
        "--workloads",
        metavar="A,B",
        type=_workloads,
        help=f"of {', '.join(BY_NAME)}; default: all but {' and '.join(load.name for load in LOADS)}",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    return parser


def _variants(text: str) -> list[Variant]:
    known = {variant.name: variant for variant in VARIANTS}
    return [known[name] for name in _names(text, known)]


def _workloads(text: str) -> list[Workload]:
    return [BY_NAME[name] for name in _names(text, BY_NAME)]


def _names(text: str, known: Iterable[str]) -> list[str]:
    known = list(known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return names


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
