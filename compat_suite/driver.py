"""The one driver: every suite of a recipe on the baseline and on Headrace, and what that says.

    recipe ──> environment ──> baseline (threads) ──> again, what failed ─┐
                                  lane auto      ─┐                       ├─> lost = passes there, not here
                                  lane processes ─┴───────────────────────┘     │
                      what is lost and has no excuse runs once more on both: <──┘
                          fails on the baseline now?  flaky there, no difference
                          passes on Headrace now?     intermittent: a difference all the same
                      what is excused runs on dask's own processes: passes there?  the excuse is refuted

A suite is in order when nothing unexplained is lost, Headrace really executed the graphs, no session broke off or left
a process behind, every excuse stands, and no time bound is broken twice in a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from compat_suite import compare
from compat_suite.compare import Outcomes
from compat_suite.recipe import Excuse, Recipe, Suite
from compat_suite.run import BASELINE, STOCK_PROCESSES, Bench, Run, Scheduler

Say = Callable[[str], None]


@dataclasses.dataclass
class Verdict:
    """What one lane did to one suite. The list ``faults`` is what makes the driver's exit status."""

    suite: str
    lane: str
    tests: int
    passed: int
    through: int
    graphs: int
    wall_s: float
    baseline_s: float
    faults: list[str] = dataclasses.field(default_factory=list)
    excused: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def run_recipe(recipe: Recipe, bench: Bench, lanes: Sequence[str], only: Sequence[str], say: Say) -> list[Verdict]:
    """Runs the suites of a recipe one after the other.

    Args:
        only: names of suites; none: all.
        say: is told about progress, a line at a time.
    """
    verdicts = []
    for suite in recipe.suites:
        if not only or suite.name in only:
            verdicts += run_suite(recipe, suite, bench, lanes, say)
    return verdicts


def run_suite(recipe: Recipe, suite: Suite, bench: Bench, lanes: Sequence[str], say: Say) -> list[Verdict]:
    """Runs one suite on the baseline, then on each lane, and judges each."""
    baseline = bench.run(suite, BASELINE, suite.targets)
    say(f"{recipe.name}/{suite.name}: {_summary(BASELINE, baseline)}")
    again = compare.failures(baseline.outcomes)
    if again:
        flaky = compare.adopt_passes(baseline.outcomes, bench.run(suite, BASELINE, again, "again").outcomes)
        say(f"  of {len(again)} failures on the baseline, {len(flaky)} pass when run again")
    verdicts = []
    for lane in lanes:
        scheduler = Scheduler("headrace", lane)
        candidate = bench.run(suite, scheduler, suite.targets)
        say(f"{recipe.name}/{suite.name}: {_summary(scheduler, candidate)}")
        verdict = judge(recipe, suite, lane, baseline, candidate)
        verdict.faults += _time(suite, lane, bench, candidate.wall_s / baseline.wall_s)
        lost = compare.lost(baseline.outcomes, candidate.outcomes)
        _explain(recipe, suite, bench, verdict, lost, candidate.outcomes)
        verdicts.append(verdict)
    return verdicts


def judge(recipe: Recipe, suite: Suite, lane: str, baseline: Run, candidate: Run) -> Verdict:
    """Everything that can be said about a lane's run without running anything more."""
    executed = compare.graphs(candidate.outcomes)
    verdict = Verdict(
        suite=f"{recipe.name}/{suite.name}",
        lane=lane,
        tests=len(candidate.outcomes),
        passed=sum(outcome.status == compare.PASSED for outcome in candidate.outcomes.values()),
        through=compare.tests_through(candidate.outcomes, "headrace"),
        graphs=executed["headrace"],
        wall_s=candidate.wall_s,
        baseline_s=baseline.wall_s,
    )
    for run, name in ((baseline, "baseline"), (candidate, "Headrace")):
        if run.trouble:
            verdict.faults.append(f"the session on {name}: {run.trouble}")
    verdict.faults += [f"outlived the session: {command}" for command in candidate.leftovers]
    if compare.vacuous(baseline.outcomes, candidate.outcomes, BASELINE.name, "headrace", suite.share):
        wanted = compare.graphs(baseline.outcomes)[BASELINE.name]
        verdict.faults.append(f"vacuous: {verdict.graphs} graphs on Headrace, {wanted} on the baseline")
    return verdict


def _time(suite: Suite, lane: str, bench: Bench, ratio: float) -> list[str]:
    """Faults, if a lane took too long. Something else may have kept the machine busy, so it is asked twice."""
    bound = suite.at_most.get(lane)
    if bound is None or ratio <= bound:
        return []
    stock = bench.run(suite, BASELINE, suite.targets, f"timed-{lane}")
    again = bench.run(suite, Scheduler("headrace", lane), suite.targets, "timed").wall_s / stock.wall_s
    if again <= bound:
        return []
    times = f"{ratio:.2f} and again {again:.2f} times the baseline's wall time"
    return [f"too slow: {times}, at most {bound:g} is allowed"]


def _explain(
    recipe: Recipe, suite: Suite, bench: Bench, verdict: Verdict, lost: Sequence[str], candidate: Outcomes
) -> None:
    scheduler = Scheduler("headrace", verdict.lane)
    excused = {test: excuse for test in lost if (excuse := recipe.excuse(test, verdict.lane))}
    unexplained = [test for test in lost if test not in excused]
    if excused:
        verdict.excused = {test: excuse.reason for test, excuse in excused.items()}
    if excused and recipe.prove:
        stock = bench.run(suite, STOCK_PROCESSES, list(excused), "excuses").outcomes
        verdict.faults += refuted(excused, stock)
    if unexplained:
        before = bench.run(suite, BASELINE, unexplained, f"lost-{verdict.lane}").outcomes
        after = bench.run(suite, scheduler, unexplained, "lost").outcomes
        faults, notes = sort_out(unexplained, candidate, before, after)
        verdict.faults += faults
        verdict.notes += notes
    verdict.notes += unneeded(recipe.excuses, verdict.lane, candidate, lost)


def unneeded(excuses: Iterable[Excuse], lane: str, ran: Iterable[str], lost: Sequence[str]) -> list[str]:
    """The excuses that cover tests of this run, and nothing that was lost."""
    notes = []
    for excuse in excuses:
        covered = {test for test in ran if excuse.covers(test, lane)}
        if covered and not covered.intersection(lost):
            notes.append(f"no longer needed: the excuse for {', '.join(excuse.tests)}")
    return notes


def refuted(excused: dict[str, Excuse], stock: Outcomes) -> list[str]:
    """The excuses that dask's own ``processes`` shows to be wrong: it passes the test."""
    return [
        f"excuse refuted, dask's own processes passes it: {test}"
        for test, excuse in excused.items()
        if excuse.proof == "stock" and stock.get(test, compare.Outcome()).status == compare.PASSED
    ]


def sort_out(
    unexplained: Iterable[str], first: Outcomes, baseline: Outcomes, again: Outcomes
) -> tuple[list[str], list[str]]:
    """Tells differences from what the baseline cannot be relied on for; gives faults and notes."""
    faults, notes = [], []
    for test in unexplained:
        outcome = first.get(test, compare.Outcome(error="it did not run at all"))
        if test in compare.failures(baseline):
            notes.append(f"flaky on the baseline: {test}")
            continue
        passes = again.get(test, compare.Outcome()).status == compare.PASSED
        steadiness = "passes when run again" if passes else "steady"
        faults.append(f"{test}: {outcome.status} ({steadiness})\n{_indent(_tail(outcome.error))}")
    return faults, notes


def _summary(scheduler: Scheduler, run: Run) -> str:
    statuses = [outcome.status for outcome in run.outcomes.values()]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(sorted(statuses)))
    executed = ", ".join(f"{name} {count}" for name, count in compare.graphs(run.outcomes).most_common())
    through = compare.tests_through(run.outcomes, scheduler.name)
    trouble = f" ({run.trouble})" if run.trouble else ""
    return f"{scheduler}: {counts} in {run.wall_s:.1f} s{trouble}; graphs: {executed}; tests through it: {through}"


def _tail(error: str, lines: int = 12) -> str:
    return "\n".join(error.strip().splitlines()[-lines:])


def _indent(text: str) -> str:
    return "\n".join(f"        {line}" for line in text.splitlines())
