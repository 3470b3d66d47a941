"""What is read from logs, and the verdicts that follow from it."""

from __future__ import annotations

from typing import Any

from compat_suite import compare
from compat_suite.compare import Outcome
from compat_suite.driver import judge, refuted, sort_out, unneeded
from compat_suite.recipe import Excuse, Recipe, Suite
from compat_suite.run import Run
from compat_suite.venv import ROOT


def phases(test: str, *outcomes: str, **extra: Any) -> list[dict[str, Any]]:
    names = ("setup", "call", "teardown")
    lines: list[dict[str, Any]] = [{"test": test, "when": "start"}]
    lines += [
        {"test": test, "when": when, "outcome": outcome, "duration_s": 1.0}
        for when, outcome in zip(names, outcomes, strict=False)
    ]
    if len(lines) > 2:
        lines[2] |= extra
    return lines


def test_the_phases_of_a_test_make_one_outcome() -> None:
    records = [
        *phases("fine", "passed", "passed", "passed", graphs={"threads": 2}),
        *phases("wrong", "passed", "failed", "passed", error="boom"),
        *phases("no setup", "failed"),
        *phases("no teardown", "passed", "passed", "failed"),
        *phases("left out", "skipped"),
        *phases("expected", "passed", "xfailed", "passed"),
        *phases("crashed", "passed"),
        {"test": "module", "when": "collect", "outcome": "failed", "error": "cannot import"},
    ]
    found = compare.outcomes(records)
    assert {test: outcome.status for test, outcome in found.items()} == {
        "fine": "passed",
        "wrong": "failed",
        "no setup": "failed",
        "no teardown": "failed",
        "left out": "skipped",
        "expected": "xfailed",
        "crashed": "did not end",
        "module": "failed",
    }
    assert found["wrong"].error == "(call) boom"
    assert found["fine"].duration_s == 3.0
    assert compare.graphs(found) == {"threads": 2}
    assert compare.failures(found) == ["wrong", "no setup", "no teardown", "crashed", "module"]


def test_lost_is_what_passes_there_and_does_anything_else_here() -> None:
    baseline = {name: Outcome("passed") for name in "abcde"} | {"f": Outcome("failed")}
    candidate = {"a": Outcome("passed"), "b": Outcome("failed"), "c": Outcome("skipped"), "d": Outcome("did not end")}
    assert compare.lost(baseline, candidate) == ["b", "c", "d", "e"]


def test_what_passes_the_second_time_counts_as_passing() -> None:
    first = {"a": Outcome("failed"), "b": Outcome("failed"), "c": Outcome("passed")}
    assert compare.adopt_passes(first, {"a": Outcome("passed"), "b": Outcome("failed")}) == ["a"]
    assert [outcome.status for outcome in first.values()] == ["passed", "failed", "passed"]


def test_a_run_that_used_something_else_is_vacuous() -> None:
    baseline = {"a": Outcome("passed", graphs={"threads": 10, "sync": 3})}

    def vacuous(**graphs: int) -> bool:
        return compare.vacuous(baseline, {"a": Outcome("passed", graphs=graphs)}, "threads", "headrace", 0.8)

    assert vacuous(threads=10)
    assert vacuous(headrace=7, threads=3)
    assert not vacuous(headrace=9)
    assert compare.vacuous({}, {}, "threads", "headrace", 0.8)


def recipe(**suite: Any) -> Recipe:
    return Recipe("r", "", ROOT, (Suite("s", ("t",), **suite),))


def run(scheduler: str = "headrace", **extra: Any) -> Run:
    return Run({"a": Outcome("passed", graphs={scheduler: 5})}, 1.0, **extra)


def faults_of(candidate: Run, **suite: Any) -> list[str]:
    made = recipe(**suite)
    return judge(made, made.suites[0], "processes", run(scheduler="threads"), candidate).faults


def test_a_good_run_has_no_faults() -> None:
    assert faults_of(run()) == []


def test_everything_wrong_with_a_run_is_a_fault() -> None:
    assert faults_of(run(trouble="killed after 5 s")) == ["the session on Headrace: killed after 5 s"]
    assert faults_of(run(leftovers=["python worker"])) == ["outlived the session: python worker"]
    assert faults_of(run(scheduler="threads"))[0].startswith("vacuous: 0 graphs on Headrace, 5 on the baseline")


def test_differences_are_sorted_out() -> None:
    first = {"steady": Outcome("failed", error="x\nAssertionError: 1 != 2"), "now and then": Outcome("failed")}
    baseline = {"steady": Outcome("passed"), "now and then": Outcome("passed"), "flaky": Outcome("failed")}
    again = {"steady": Outcome("failed"), "now and then": Outcome("passed")}
    faults, notes = sort_out(["steady", "now and then", "flaky", "gone"], first, baseline, again)
    assert notes == ["flaky on the baseline: flaky"]
    assert faults[0].startswith("steady: failed (steady)\n")
    assert "AssertionError: 1 != 2" in faults[0]
    assert faults[1].startswith("now and then: failed (passes when run again)")
    assert faults[2].startswith("gone: did not end (steady)")


def test_an_excuse_is_refuted_by_a_stock_scheduler_that_passes() -> None:
    excuse = Excuse(("a*",), ("processes",), "ids differ")
    argued = Excuse(("b",), ("processes",), "only passes by chance", proof="argument")
    passed, failed = Outcome("passed"), Outcome("failed")
    assert refuted({"a": excuse}, {"a": failed}) == []
    assert refuted({"a": excuse}, {"a": passed}) == ["excuse refuted, dask's own processes passes it: a"]
    assert refuted({"b": argued}, {"b": passed}) == []


def test_an_excuse_that_nothing_needs_is_noted() -> None:
    excuse = Excuse(("a*",), ("processes",), "ids differ")
    assert unneeded([excuse], "processes", ["a1", "b"], ["a1"]) == []
    assert unneeded([excuse], "processes", ["b"], []) == []
    assert unneeded([excuse], "auto", ["a1"], []) == []
    assert unneeded([excuse], "processes", ["a1"], ["b"]) == ["no longer needed: the excuse for a*"]
