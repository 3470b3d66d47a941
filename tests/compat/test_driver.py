"""The driver end to end, on a suite of a few tests that is written for it: real pytest sessions, real schedulers."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compat_suite import __main__ as command
from compat_suite.recipe import Suite
from compat_suite.run import BASELINE, Bench

pytest.importorskip("dask.bag")

FAKE = """
import os

import dask
import dask.bag as db
import pytest
from dask.bag.utils import assert_eq


def name():
    return dask.config.get("scheduler")


def test_default():
    assert dask.delayed(os.getpid)().compute(scheduler=None) > 0


def test_assert_eq():
    assert_eq(db.range(4, npartitions=2), db.from_sequence(range(4), npartitions=2))


def test_its_own_choice():
    assert dask.delayed(os.getpid)().compute(scheduler="sync") == os.getpid()


def test_changes_the_config_for_good():
    dask.config.set(scheduler="sync")


def test_finds_the_config_as_it_should_be():
    assert name() != "sync"
    dask.compute(dask.delayed(len)("abc"))


@pytest.mark.parametrize("value", [object()])
def test_with_an_address(value):
    pass


@pytest.mark.xfail
def test_unreliable():
    pass


def test_fails_everywhere():
    assert 0


def test_only_in_this_process():
    assert dask.delayed(os.getpid)().compute() == os.getpid()
"""

CRASH = """
import os
import subprocess
import sys

CODE = f"import time; time.sleep(600)  # {os.environ['COMPAT_RUN']}"


def test_before():
    pass


def test_leaves_a_process():
    subprocess.Popen([sys.executable, "-c", CODE], start_new_session=True)


def test_crashes():
    os._exit(3)


def test_after():
    pass
"""

HANG = """
import threading


def test_hangs():
    threading.Event().wait(600)
"""

POOL = """
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor


def test_ends_beside_a_pool():
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    assert pool.submit(os.getpid).result() != os.getpid()
    assert any(name.startswith("sem.mp-") for name in os.listdir("/dev/shm"))
    os._exit(3)
"""

RECIPE = """
summary = "The fake suite"
requirements = "fake.txt"
root = "{directory}"

[[suite]]
name = "fake"
targets = ["fake_suite.test_fake"]
ci = ["fake_suite/test_fake.py::test_only_in_this_process"]
at_most = {{ auto = {at_most} }}

[[excuse]]
tests = ["{test}"]
lanes = ["processes"]
reason = "it asks where it runs"
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    package = tmp_path / "fake_suite"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, text in (("test_fake", FAKE), ("test_crash", CRASH), ("test_hang", HANG), ("test_pool", POOL)):
        (package / f"{name}.py").write_text(text)
    return Bench(Path(sys.executable), tmp_path / "logs", {}, tmp_path)


def test_one_session_is_read_completely(bench: Bench) -> None:
    suite = Suite("fake", ("fake_suite.test_fake",))
    run = bench.run(suite, BASELINE, suite.targets)
    assert run.trouble == ""
    assert list(run.leftovers) == []
    assert run.wall_s > 0
    by_name = {test.split("::")[1]: outcome for test, outcome in run.outcomes.items()}
    assert {name: outcome.status for name, outcome in by_name.items()} == {
        "test_default": "passed",
        "test_assert_eq": "passed",
        "test_its_own_choice": "passed",
        "test_changes_the_config_for_good": "passed",
        "test_finds_the_config_as_it_should_be": "passed",
        "test_with_an_address[value0]": "passed",
        "test_unreliable": "xpassed",
        "test_fails_everywhere": "failed",
        "test_only_in_this_process": "passed",
    }
    assert by_name["test_default"].graphs == {"threads": 1}
    assert by_name["test_its_own_choice"].graphs == {"sync": 1}
    assert by_name["test_finds_the_config_as_it_should_be"].graphs == {"threads": 1}
    assert by_name["test_assert_eq"].graphs["threads"] >= 2, "assert_eq computes both sides on the scheduler under test"
    assert "sync" not in by_name["test_assert_eq"].graphs
    assert "assert 0" in by_name["test_fails_everywhere"].error


def test_the_synchronous_names_can_be_made_to_mean_it_too(bench: Bench) -> None:
    suite = Suite("fake", (), replace_sync=True)
    run = bench.run(suite, BASELINE, ["fake_suite.test_fake"])
    (outcome,) = (outcome for test, outcome in run.outcomes.items() if test.endswith("::test_its_own_choice"))
    assert outcome.graphs == {"threads": 1}


def test_single_tests_can_be_run_again_by_their_ids(bench: Bench) -> None:
    suite = Suite("fake", ("fake_suite.test_fake",))
    wanted = ["fake_suite/test_fake.py::test_fails_everywhere"]
    assert list(bench.run(suite, BASELINE, wanted, "again").outcomes) == wanted


def test_a_run_of_a_stock_scheduler_can_be_reused(bench: Bench) -> None:
    suite = Suite("fake", ("fake_suite.test_fake",))
    wanted = ["fake_suite/test_fake.py::test_with_an_address"]
    again = dataclasses.replace(bench, reuse=True)
    first = bench.run(suite, BASELINE, wanted)
    assert again.run(suite, BASELINE, wanted) == first
    other = again.run(suite, BASELINE, ["fake_suite/test_fake.py::test_changes_the_config_for_good"])
    assert len(other.outcomes) == 1
    assert other.outcomes.keys() != first.outcomes.keys()


def test_a_crash_and_what_it_leaves_behind_are_seen(bench: Bench) -> None:
    suite = Suite("crash", ("fake_suite.test_crash",))
    run = bench.run(suite, BASELINE, suite.targets)
    statuses = [outcome.status for outcome in run.outcomes.values()]
    assert statuses == ["passed", "passed", "did not end"]
    assert run.trouble == "pytest ended with 3"
    (leftover,) = run.leftovers
    assert "time.sleep(600)" in leftover
    mark = leftover.split()[-1]
    assert len(mark) == 32
    assert subprocess.run(["pgrep", "-f", mark], capture_output=True, check=False).stdout == b""


def test_a_pool_that_is_killed_leaves_no_semaphore(bench: Bench) -> None:
    # That they are gone is what every test is held to.
    suite = Suite("pool", ("fake_suite.test_pool",))
    run = bench.run(suite, BASELINE, suite.targets)
    assert [outcome.status for outcome in run.outcomes.values()] == ["did not end"]
    assert (run.trouble, list(run.leftovers)) == ("pytest ended with 3", [])


def test_a_session_that_hangs_is_ended(bench: Bench) -> None:
    suite = Suite("hang", ("fake_suite.test_hang",), timeout_s=3.0)
    run = bench.run(suite, BASELINE, suite.targets)
    assert run.trouble == "killed after 3 s"
    assert run.wall_s < 30


def test_one_test_that_hangs_fails_alone(bench: Bench) -> None:
    suite = Suite("hang", ("fake_suite.test_hang",), test_timeout_s=1.0)
    run = bench.run(suite, BASELINE, suite.targets)
    assert run.trouble == ""
    (outcome,) = run.outcomes.values()
    assert outcome.status == "failed"
    assert "Timeout" in outcome.error


def recipe(bench: Bench, test: str = "nothing", at_most: float = 100.0) -> list[str]:
    """Writes the recipe; gives the command's arguments that run it in this very environment."""
    directory = bench.output.parent
    (directory / "fake.toml").write_text(RECIPE.format(directory=directory, test=test, at_most=at_most))
    (directory / "fake.txt").write_text("dask==0\n")
    return ["--recipes", str(directory), "--python", sys.executable, "--output", str(bench.output)]


def test_lane_auto_loses_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*recipe(bench), "--lane", "auto"]) == 0
    out = capsys.readouterr().out
    assert "of 1 failures on the baseline, 0 pass when run again" in out
    assert "1 runs compared with their baselines, 0 fault(s)" in out


def test_what_only_headrace_fails_is_a_fault_unless_it_is_excused(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*recipe(bench), "--lane", "processes"]
    assert command.main(arguments) == 1
    (fault,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("FAULT"))
    test = fault.split()[2].removesuffix(":")
    assert test.endswith("::test_only_in_this_process")

    recipe(bench, test)
    assert command.main(arguments) == 0
    assert f"excused  fake/fake[processes] {test}: it asks where it runs" in capsys.readouterr().out


def test_a_lane_that_is_too_slow_twice_is_a_fault(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*recipe(bench, at_most=0.01), "--lane", "auto"]) == 1
    (fault,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("FAULT"))
    assert re.search(r"too slow: \d+\.\d\d and again \d+\.\d\d times the baseline's wall time, at most 0.01", fault)


def test_an_unknown_recipe_is_named(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*recipe(bench), "--recipe", "nonsense"]) == 2
    assert "there are: fake" in capsys.readouterr().err


def test_the_part_for_ci_runs_here_and_believes_the_excuses(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    only = "fake_suite/test_fake.py::test_only_in_this_process"
    arguments = recipe(bench, only, at_most=0.0)
    del arguments[2:4]  # the interpreter: by default it is this one, and nothing is installed
    assert command.main([*arguments, "--part", "ci"]) == 0
    out = capsys.readouterr().out
    assert "2 runs compared with their baselines, 0 fault(s)" in out
    assert f"excused  fake/fake[processes] {only}" in out
    assert not list(bench.output.rglob("*-excuses.*"))
