"""What the decision core costs a task: ``python tests/sched/cost.py`` prints a table; nothing but ``Machine.handle`` is
timed.

A seeded simulation with a fake clock: workers take a task's time, a message takes a tenth of a millisecond, workers
report every ten milliseconds as real ones do. The graph is blocks of three leaves and one task that combines them; a
tenth of the blocks is joined with the one before, so that values move between workers.
"""

from __future__ import annotations

import argparse
import gc
import random
from heapq import heappop, heappush
from time import process_time

from headrace.graph import resting_collector
from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.machine import Machine

MESSAGE_S, REPORT_S, START_S = 1e-4, 0.01, 0.1
BASE = 1 << 20


def blocks(size: int, rng: random.Random) -> list[tuple[int, ...]]:
    deps: list[tuple[int, ...]] = []
    for i in range(size):
        if i % 4 != 3:
            deps.append(())
        elif i > 4 and rng.random() < 0.1:
            deps.append((i - 4, i - 3, i - 2, i - 1))
        else:
            deps.append((i - 3, i - 2, i - 1))
    return deps


class Cluster:
    """Workers on a fake clock. What is pending is a heap of (time, number, event)."""

    def __init__(self, machine: Machine, seed: int) -> None:
        self.machine = machine
        self.rng = random.Random(seed)
        self.pending: list[tuple[float, int, e.Event]] = []
        self.free_at: dict[int, float] = {}
        self.started: dict[int, list[tuple[float, int]]] = {}  # worker → when it begins which task
        self.count = 0
        self.spent_s = 0.0
        self.now = 0.0
        self.finished = False

    def post(self, event: e.Event) -> None:
        start = process_time()
        commands = self.machine.handle(event, self.now)
        self.spent_s += process_time() - start
        for command in commands:
            getattr(self, f"_obey_{type(command).__name__}", self._ignore)(command)

    def later(self, at: float, event: e.Event) -> None:
        self.count += 1
        heappush(self.pending, (at, self.count, event))

    def run(self) -> None:
        while self.pending and not self.finished:
            self.now, _, event = heappop(self.pending)
            if type(event) is e.WorkerRan and event.worker in self.started:
                begun = self.started[event.worker]
                for span in event.spans:
                    begun.remove((span.start_s, span.task))
            self.post(event)

    def _ignore(self, command: c.Command) -> None: ...

    def _obey_Launch(self, command: c.Launch) -> None:
        for worker in command.workers:
            self.later(self.now + START_S, e.WorkerStarted(worker))

    def _obey_Prepare(self, command: c.Prepare) -> None:
        self.later(self.now + START_S, e.WorkerStarted(command.worker))

    def _obey_RunAt(self, command: c.RunAt) -> None:
        worker = command.worker
        at = max(self.now + MESSAGE_S, self.free_at.get(worker, 0.0))
        spans: list[e.Span] = []
        for task in command.tasks:
            wall = self.rng.uniform(0.005, 0.015)
            spans.append(e.Span(task, at, wall, wall, 1.0, 100, 1e-5))
            at += wall
            if at - spans[0].start_s > REPORT_S:
                self._report(worker, at, spans)
                spans = []
        self.free_at[worker] = at
        if spans:
            self._report(worker, at, spans)

    def _report(self, worker: int, at: float, spans: list[e.Span]) -> None:
        # A tenth of the results is large and stays where it was made.
        arrived = [span.task for span in spans if span.task % 10]
        self.later(at + MESSAGE_S, e.WorkerRan(worker, spans, arrived))

    def _obey_Publish(self, command: c.Publish) -> None:
        self.later(self.now + 2 * MESSAGE_S, e.ValuePublished(command.task, command.worker))

    def _obey_Revoke(self, command: c.Revoke) -> None:
        # What was promised to run will: fake workers begin a task when they are told to.
        self.later(self.now + 2 * MESSAGE_S, e.TasksRevoked(command.worker, []))

    def _obey_FinishJob(self, command: c.FinishJob) -> None:
        self.finished = True


def cost_us(size: int, workers: int, seed: int = 1) -> float:
    """Microseconds a task, submission and end included, in lane processes on so many workers."""
    machine = Machine(workers, lane="processes")
    cluster = Cluster(machine, seed)
    deps = blocks(size, cluster.rng)
    outputs = range(3, size, 4)
    families = [f"family-{i % 4}" for i in range(size)]
    gc.collect()
    with resting_collector():  # as in ``Engine``
        cluster.post(e.JobSubmitted(1, BASE, deps, families, outputs, (), (), "processes", workers, -1))
    cluster.run()
    assert cluster.finished
    assert not machine.tasks
    return cluster.spent_s / size * 1e6


def quick_us(size: int) -> float:
    """Microseconds a task of independent quick tasks that the caller runs in lane auto."""
    machine = Machine(2)
    event: e.Event = e.JobSubmitted(1, BASE, [()] * size, ["inc"] * size, range(size), (), (), "auto", 2, -1)
    spent_s = now = 0.0
    gc.collect()
    while True:
        start = process_time()
        commands = machine.handle(event, now)
        spent_s += process_time() - start
        command = commands[-1]
        if not isinstance(command, c.RunHere):
            break
        cpu_s = 1e-6 if len(command.tasks) <= 16 else -1.0
        event = e.SlotRan(command.slot, [e.Span(task, now, 1e-6, cpu_s, 1.0, 28, 0.0) for task in command.tasks], [])
        now += 0.005
    assert command == c.FinishJob(1)
    return spent_s / size * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description="What the decision core costs a task.")
    parser.add_argument("--tasks", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=1_000)
    arguments = parser.parse_args()
    for size in arguments.tasks:
        cost = cost_us(size, arguments.workers)
        print(f"{size:>9,} tasks on {arguments.workers:,} workers: {cost:6.2f} µs a task", flush=True)
    print(f"{10_000:>9,} quick tasks in the caller:   {min(quick_us(10_000) for _ in range(3)):6.2f} µs a task")


if __name__ == "__main__":
    main()
