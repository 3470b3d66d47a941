"""What a run's log says, and what two runs say about each other. Pure: lists of records in, verdicts out."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

PASSED, FAILED, SKIPPED, XFAILED, UNFINISHED = "passed", "failed", "skipped", "xfailed", "did not end"


@dataclasses.dataclass
class Outcome:
    """How one test ended. ``graphs``: how many graphs each scheduler executed during it."""

    status: str = UNFINISHED
    duration_s: float = 0.0
    graphs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    error: str = ""


Outcomes = dict[str, Outcome]


def outcomes(records: Iterable[Mapping[str, Any]]) -> Outcomes:
    """Sums up a log of the plugin. A test that began and has no end took its process down, or hung in it."""
    found: Outcomes = collections.defaultdict(Outcome)
    for record in records:
        outcome = found[record["test"]]
        when = record["when"]
        if when == "start":
            continue
        outcome.duration_s += record.get("duration_s", 0.0)
        outcome.graphs = record.get("graphs", outcome.graphs)
        if record["outcome"] == FAILED:
            outcome.status = FAILED
            outcome.error = outcome.error or f"({when}) {record.get('error', '')}"
        elif when == "call" or record["outcome"] in (SKIPPED, XFAILED):
            outcome.status = record["outcome"]
    return dict(found)


def graphs(found: Outcomes) -> collections.Counter[str]:
    """How many graphs each scheduler executed in all."""
    total: collections.Counter[str] = collections.Counter()
    for outcome in found.values():
        total.update(outcome.graphs)
    return total


def tests_through(found: Outcomes, scheduler: str) -> int:
    """How many tests executed at least one graph on this scheduler."""
    return sum(1 for outcome in found.values() if outcome.graphs.get(scheduler))


def failures(found: Outcomes) -> list[str]:
    return [test for test, outcome in found.items() if outcome.status in (FAILED, UNFINISHED)]


def adopt_passes(first: Outcomes, again: Outcomes) -> list[str]:
    """Takes over what passed when it was run again; gives the tests for which that is so."""
    flaky = [test for test in failures(first) if test in again and again[test].status == PASSED]
    for test in flaky:
        first[test] = again[test]
    return flaky


def lost(baseline: Outcomes, candidate: Outcomes) -> list[str]:
    """The tests that pass on the baseline and do anything else on the candidate, not being run or skipped included."""
    return [
        test
        for test, outcome in baseline.items()
        if outcome.status == PASSED and candidate.get(test, Outcome()).status != PASSED
    ]


def vacuous(baseline: Outcomes, candidate: Outcomes, of_baseline: str, of_candidate: str, share: float) -> bool:
    """Whether the candidate executed too few graphs for its passes to mean anything.

    Both runs have the same default, so they should execute about the same number on it; ``share`` is how much of it.
    """
    wanted = graphs(baseline)[of_baseline]
    return wanted == 0 or graphs(candidate)[of_candidate] < share * wanted
