"""``headrace bench``: compares schedulers on the built-in suite, or on your own graph."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

EPILOG = """\
workloads: {workloads}
schedulers: sync threads processes distributed ray, or module:function for any other get(dsk, keys)

examples:
  headrace bench --quick
  headrace bench --workloads inc10k,flights --lanes auto --repeats 9
  headrace bench --graph mymodule:make_graph --schedulers threads,distributed

A graph of yours: the function takes no arguments and returns a dask collection, a tuple or list of collections, or
(dsk, keys). It is called anew before every run, in a process of each scheduler, with the current folder importable.
"""
EXTRA = "pip install 'headrace[bench]'"


def main(argv: Sequence[str]) -> int:
    """Returns 0 if Headrace gave the right results wherever a stock scheduler did, otherwise 1."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.demo:
        options.quick = True
        options.json = options.json or Path("out/demo.json")
        options.chart = options.chart or Path("out/demo.png")
    try:
        return _run(options)
    except LookupError as error:
        parser.error(str(error.args[0] if error.args else error))
    except ImportError as error:
        parser.error(f"{error}: {EXTRA}")


class _BenchParser(argparse.ArgumentParser):
    """Names the workloads in its help. Until that is asked for it imports none of them, nor what they are made of."""

    def format_help(self) -> str:
        from headrace_dask.bench.workloads import suite

        try:
            workloads = " ".join(suite())
        except ImportError as error:
            workloads = f"none, {error}: {EXTRA}"
        self.epilog = EPILOG.format(workloads=workloads)
        return super().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = _BenchParser(
        prog="headrace bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--schedulers", metavar="A,B", type=_names, help="stock and other schedulers; default: all installed"
    )
    parser.add_argument("--lanes", metavar="A,B", type=_names, help="lanes of Headrace; default: all; '' for none")
    parser.add_argument("--workloads", metavar="A,B", type=_names, default=[], help="default: the whole suite")
    parser.add_argument(
        "--graph", metavar="MODULE:FUNCTION", action="append", default=[], help="a graph of yours instead"
    )
    parser.add_argument(
        "--repeats", type=_count, help="runs after a first one, of which the median is taken; default 5"
    )
    parser.add_argument("--bound", metavar="S", type=_positive, help="seconds for one run; default 60")
    parser.add_argument("--memory", choices=("all", "some", "none"), help="measure peak memory: of which workloads")
    parser.add_argument("--quick", action="store_true", help="an abridged suite: under three minutes on two cores")
    parser.add_argument("--demo", action="store_true", help="--quick --json out/demo.json --chart out/demo.png")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    parser.add_argument("--chart", metavar="FILE.png", type=Path, help="draw them (needs matplotlib)")
    return parser


def _run(options: argparse.Namespace) -> int:
    from headrace_dask.bench.chart import draw, need_matplotlib
    from headrace_dask.bench.plans import make_plan
    from headrace_dask.bench.report import Terminal
    from headrace_dask.bench.runner import Listener, Runner

    if options.chart:
        need_matplotlib()  # now, and not after minutes of measuring
    plan = make_plan(options)
    for path in filter(None, (options.json, options.chart)):
        path.parent.mkdir(parents=True, exist_ok=True)
    terminal = Terminal(plan.schedulers, plan.bound_s)
    terminal.begin([workload.name for workload in plan.workloads])
    # As Ctrl-C does, it ends the children on the way out.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report = Runner(plan, Listener(now=terminal.now, row=terminal.row)).run()
    finally:
        signal.signal(signal.SIGTERM, before)
    terminal.end(report)
    terminal.line()
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=1))
        terminal.line(f"figures: {options.json}")
    if options.chart:
        draw(report, options.chart)
        terminal.line(f"chart:   {options.chart}")
    terminal.line(f"took {report.took_s:.0f} s")
    return int(any(record.wrongs() for record in report.workloads.values()))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return count


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
