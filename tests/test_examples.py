"""Every program in examples/ does what it says, however it is started; the README shows nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import pytest

import headrace
import headrace_dask
from headrace.testing import collect, meet

ROOT = Path(__file__).parent.parent
NUMBERS = range(300_000)
SQUARES, SEVENS = sum(n * n for n in NUMBERS), len(range(0, len(NUMBERS), 7))
DESIGN_PROGRAM = f"{SQUARES} / {SEVENS} = {SQUARES / SEVENS:.1f}\n"
EXPECTED = {
    "plain_python.py": DESIGN_PROGRAM,
    "dask_delayed.py": DESIGN_PROGRAM,
    "pipeline.py": "44644642\n",
    "dask_pipeline.py": "44644642\n",
    "dask_array.py": "[7, 6, 5, 4, 3, 2, 1, 0]\n",  # numbers below a larger modulus vary more
}


def run(*command: str, lane: str, folder: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HEADRACE_LANE": lane}
    return subprocess.run(
        [sys.executable, *command],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
        env=environment,
    )


def test_every_example_is_run() -> None:
    programs = {path.name for path in (ROOT / "examples").glob("*.py") if not path.name.startswith("airflow_")}
    assert programs == {*EXPECTED, "flights.py"}  # the DAGs are run by tests/airflow


@pytest.mark.parametrize("lane", ["auto", "processes"])
@pytest.mark.parametrize("name", EXPECTED)
def test_example(name: str, lane: str, tmp_path: Path) -> None:
    done = run(str(ROOT / "examples" / name), lane=lane, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, EXPECTED[name], "")
    assert not list(tmp_path.iterdir())


def test_the_flights(tmp_path: Path) -> None:
    """Its models are not the same to the last digit on every version of scikit-learn; counts and means are."""
    done = run(str(ROOT / "examples" / "flights.py"), lane="auto", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert len(rows) == 16
    assert sum(int(row[1]) for row in rows) == 327_346
    assert ["HA", "342", "-6.9", "min"] in [row[:4] for row in rows]


def test_a_program_without_a_file_has_its_functions_travel_too(tmp_path: Path) -> None:
    source = (ROOT / "examples" / "plain_python.py").read_text()
    done = run("-", lane="processes", folder=tmp_path, stdin=source)
    assert (done.returncode, done.stdout, done.stderr) == (0, DESIGN_PROGRAM, "")


def test_the_readme_shows_the_examples_as_they_are() -> None:
    sources = [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert any(block in source for source in sources), block


@pytest.mark.parametrize("lane", ["auto", "threads", "processes"])
def test_calls_that_share_nothing_run_at_the_same_time(lane: Any, tmp_path: Path) -> None:
    with headrace.Runtime(lane=lane, num_workers=2) as rt:
        result1 = rt.submit(meet, tmp_path, "func1", "func2")
        result2 = rt.submit(meet, tmp_path, "func2", "func1")
        result3 = rt.submit(collect, [result1, result2], both=(result1, result2))
        assert result3.result(60) == ((["func1", "func2"],), {"both": ("func1", "func2")})


@pytest.mark.shares_runtime
@pytest.mark.parametrize("lane", ["auto", "threads", "processes"])
def test_delayed_calls_that_share_nothing_run_at_the_same_time(lane: str, tmp_path: Path) -> None:
    result1 = dask.delayed(meet, pure=False)(tmp_path, "func1", "func2")
    result2 = dask.delayed(meet, pure=False)(tmp_path, "func2", "func1")
    with dask.config.set({"headrace.lane": lane}):
        both = dask.delayed(list)([result1, result2]).compute(scheduler=headrace_dask.get, num_workers=2)
    assert both == ["func1", "func2"]
