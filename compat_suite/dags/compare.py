"""What runs of the same DAGs say about each other. Pure: outcomes in, differences out.

An outcome is taken apart into facts: a name (``state``, ``task X``, ``xcom X return_value``) and a value each. Two runs
differ in a fact if it has other values, or is not there at all, in one of them. A difference between stock and Headrace
is explained if stock differs from itself in the same fact: by chance, by the clock, by a race.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

ABSENT = "absent"

Facts = Mapping[str, str]
"""name → value, of one run of one DAG."""

Runs = Mapping[str, Facts]
"""DAG → facts, of one pass through all DAGs."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A fact that Headrace has otherwise than stock. ``stock`` holds every value that stock showed."""

    dag_id: str
    fact: str
    stock: frozenset[str]
    headrace: str

    @property
    def is_explained(self) -> bool:
        return len(self.stock) > 1

    def __str__(self) -> str:
        values = " or ".join(f"{value:.80}" for value in sorted(self.stock))
        return f"{self.dag_id}: {self.fact}: {self.headrace:.80} on Headrace, {values} on stock"


@dataclass(slots=True)
class Verdict:
    """One variant against stock."""

    variant: str
    dags: int
    tasks: int
    identical: int
    differences: list[Difference] = field(default_factory=list)

    @property
    def faults(self) -> list[Difference]:
        return [difference for difference in self.differences if not difference.is_explained]


def differences(stock: Sequence[Runs], headrace: Runs) -> list[Difference]:
    """Every fact in which Headrace differs from the first pass of stock.

    Args:
        stock: the passes of stock; any of them may be short of DAGs, but the first.
        headrace: what is compared.
    """
    found = []
    for dag_id, expected in stock[0].items():
        ours = headrace.get(dag_id, {})
        for fact in sorted({*expected, *ours}):
            value = ours.get(fact, ABSENT)
            if value != expected.get(fact, ABSENT):
                shown = frozenset(runs[dag_id].get(fact, ABSENT) for runs in stock if dag_id in runs)
                found.append(Difference(dag_id, fact, shown, value))
    return found


def judge(variant: str, stock: Sequence[Runs], headrace: Runs) -> Verdict:
    """Sums up a pass."""
    found = differences(stock, headrace)
    differing = {difference.dag_id for difference in found}
    tasks = sum(fact.startswith("task ") for facts in headrace.values() for fact in facts)
    return Verdict(variant, len(stock[0]), tasks, len(stock[0]) - len(differing), found)


def unexplained(verdicts: Iterable[Verdict]) -> list[str]:
    """The DAGs that want another look."""
    return sorted({fault.dag_id for verdict in verdicts for fault in verdict.faults})
