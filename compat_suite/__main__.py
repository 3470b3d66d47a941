"""The command line: ``python -m compat_suite [--part ci] [--recipe NAME] [--suite NAME] [--lane auto]``.

Exit status: 0 when everything is in order, 1 when something is not, 2 when the driver itself was used wrongly.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from compat_suite import recipe as recipes
from compat_suite import venv
from compat_suite.driver import Verdict, run_recipe
from compat_suite.run import Bench, site_packages


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    files = sorted(options.recipes.glob("*.toml"))
    chosen = [file for file in files if not options.recipe or file.stem in options.recipe]
    if not chosen:
        print(f"no such recipe; there are: {', '.join(file.stem for file in files)}", file=sys.stderr)
        return 2
    verdicts: list[Verdict] = []
    for file in chosen:
        recipe = recipes.load(file)
        if options.part == "ci":
            recipe = recipe.short()
        if not any(not options.suite or suite.name in options.suite for suite in recipe.suites):
            continue
        python = options.python or _interpreter(recipe, options)
        root = Path(recipe.root) if recipe.root else site_packages(python)
        bench = Bench(python, options.output.absolute() / recipe.name, recipe.env, root, options.reuse_baseline)
        verdicts += run_recipe(recipe, bench, options.lane or recipes.LANES, options.suite, _say)
    report(verdicts)
    return 0 if verdicts and not any(verdict.faults for verdict in verdicts) else 1


def report(verdicts: Sequence[Verdict]) -> None:
    """Prints the table of runs, then everything that is excused, noted or wrong."""
    columns = ("tests", "passed", "through", "graphs", "wall s", "threads s", "ratio")
    print(f"\n{'suite':<28}{'lane':<11}", *(f"{column:>9}" for column in columns))
    for v in verdicts:
        times = (f"{v.wall_s:.1f}", f"{v.baseline_s:.1f}", f"{v.wall_s / v.baseline_s:.2f}")
        cells = (v.tests, v.passed, v.through, v.graphs, *times)
        print(f"{v.suite:<28}{v.lane:<11}", *(f"{cell:>9}" for cell in cells))
    for v in verdicts:
        for test, reason in v.excused.items():
            print(f"excused  {v.suite}[{v.lane}] {test}: {' '.join(reason.split())}")
        for note in v.notes:
            print(f"note     {v.suite}[{v.lane}] {note}")
    for v in verdicts:
        for fault in v.faults:
            print(f"FAULT    {v.suite}[{v.lane}] {fault}")
    faults = sum(len(v.faults) for v in verdicts)
    print(f"\n{len(verdicts)} runs compared with their baselines, {faults} fault(s)")


def _interpreter(recipe: recipes.Recipe, options: argparse.Namespace) -> Path:
    if options.part == "ci":
        return Path(sys.executable)
    return venv.provide(recipe.requirements, options.venvs / recipe.requirements.stem)


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m compat_suite", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--part",
        choices=("all", "ci"),
        default="all",
        help="ci: only what the recipes name for it, in the environment that runs this",
    )
    parser.add_argument("--recipe", action="append", default=[], help="name of a recipe (repeatable)")
    parser.add_argument("--suite", action="append", default=[], help="name of a suite (repeatable)")
    parser.add_argument("--lane", action="append", default=[], choices=recipes.LANES, help="default: all")
    parser.add_argument("--python", type=Path, help="run in this interpreter's environment; nothing is installed")
    parser.add_argument(
        "--reuse-baseline", action="store_true", help="read stock schedulers' runs from --output if they are there"
    )
    parser.add_argument("--venvs", type=Path, default=venv.ROOT / ".cache" / "compat", help="where environments live")
    parser.add_argument("--output", type=Path, default=venv.ROOT / "out" / "compat", help="where logs are written")
    parser.add_argument("--recipes", type=Path, default=Path(__file__).parent / "recipes", help="where recipes are")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
