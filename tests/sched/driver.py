"""One machine and short ways to say what happens to it: for the tests that compare lists of commands.

Every machine here verifies all invariants after each event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.here import OUTLIER_S, QUICK_BUDGET_S, STALLED_S
from headrace.sched.machine import FUTURES, Machine
from headrace.sched.policy import HOLDS, Family

BASE = 100
CALLER = -1


class Commands(list[c.Command]):
    """A list that equals another one only if the types of what is in them are equal too."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and list.__eq__(self, other) and [*map(type, self)] == [*map(type, other)]

    __hash__ = None


class Driver:
    """A machine, its clock, and short ways to say what happens."""

    def __init__(self, lane: str = "auto", cores: int = 2, **settings: Any) -> None:
        self.machine = Machine(cores, lane=lane, check=True, **settings)
        self.now = 0.0

    def __call__(self, event: e.Event, after_s: float = 0.001) -> Commands:
        self.now += after_s
        return Commands(self.machine.handle(event, self.now))

    def submit(
        self,
        deps: Sequence[tuple[int, ...]],
        lane: str = "auto",
        families: str | Sequence[str] = "f",
        outputs: Iterable[int] | None = None,
        limit: int = 2,
        job: int = 1,
        base: int = BASE,
        caller: int | None = CALLER,
        **more: Any,
    ) -> Commands:
        names = [families] * len(deps) if isinstance(families, str) else families
        wanted = [len(deps) - 1] if outputs is None else list(outputs)
        more = {"literals": (), "pinned": (), **more}
        return self(e.JobSubmitted(job, base, deps, names, wanted, lane=lane, limit=limit, caller=caller, **more))

    def know(self, name: str, kind: int, wall_s: float = 0.06) -> Family:
        """A family that has been measured before; by default its tasks are too long for the caller."""
        family = self.machine.families[name] = Family(name)
        family.kind, family.wall_s, family.runs = kind, wall_s, 10
        family.holds = kind == HOLDS
        family.ran_at = {1}
        family.ready_at = {1, 2}
        return family

    def start_workers(self, count: int = 2) -> None:
        """Workers that are up and have nothing to do."""
        self.submit([()] * count, "processes", "starter", range(count), count, job=99, base=1, caller=-99)
        for worker in range(1, count + 1):
            self(e.WorkerStarted(worker))
        for worker in self.machine.workers.values():
            if worker.queue:
                self(ran_away(worker.id, *worker.queue))
        assert set(self.machine.jobs) == {FUTURES}
        assert len(self.machine.idle_workers) == count
        for filed in (self.machine.idle_workers, self.machine.roomy):  # so that tests need not think of what has been
            order = sorted(filed, key=lambda worker: worker.id)
            filed.clear()
            filed.update(dict.fromkeys(order))


def span(task: int, wall_s: float = 0.01, cpu_s: float | None = None, width: float = 1.0, size: int = 10) -> e.Span:
    return e.Span(task, 0.0, wall_s, wall_s if cpu_s is None else cpu_s, width, size, 0.0)


def ran(slot: int, *tasks: int, returned: Sequence[int] = (), wall_s: float = 0.06) -> e.SlotRan:
    return e.SlotRan(slot, [span(task, wall_s) for task in tasks], returned)


def ran_away(worker: int, *tasks: int, arrived: bool = True) -> e.WorkerRan:
    return e.WorkerRan(worker, [span(task) for task in tasks], tasks if arrived else ())


def here(
    slot: int, *tasks: int, quick: bool = True, known: bool = True, measured: bool | None = None, job: int = 1
) -> c.RunHere:
    """``quick``: in a batch; ``known``: of families that have run before, which are measured only outside batches."""
    if measured is None:
        measured = not (quick and known)
    if not quick:
        return c.RunHere(slot, job, list(tasks), 0.0, 0.0, measured)
    return c.RunHere(slot, job, list(tasks), QUICK_BUDGET_S, OUTLIER_S if known else STALLED_S, measured)
