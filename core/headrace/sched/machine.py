"""The decision core: ``handle(event, now)`` returns commands.

Pure: no clock, no thread, no I/O, no randomness; the same events give the same commands. Who does what::

    jobs       graphs and futures come in; end well or not
    here       slots of this process: their batches, and what they report
    stages     tasks that make or read streams
    away       worker processes: their queues, starts and stops
    workers    what worker processes report
    values     the life of a value; lineage
    heaps      ready tasks by kind of place; ``policy`` learns the kinds
    placement  after every event: places whatever can be placed
    state      the records: tasks, jobs, slots, workers
    check      states what must hold after every event; ``log`` remembers

The machine is not thread-safe: its shell calls it under one lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched import here, jobs, placement, stages, workers
from headrace.sched.jobs import FUTURES
from headrace.sched.log import Entry, Log
from headrace.sched.policy import QUICK, Family
from headrace.sched.state import AWAY, DONE, HERE_QUEUED, OPEN, Job, Slot, Task, Worker


class Machine:
    """All that is known, and what to do next.

    Args:
        cores: how many tasks may run at once; also the number of pool slots, whose ids are 1 to ``cores``.
        lane: the lane of futures.
        inline_below_s, ahead_s, max_deaths, idle_timeout_s, check: see ``headrace.config.Settings``.
    """

    def __init__(
        self,
        cores: int,
        lane: str = "auto",
        inline_below_s: float = 100e-6,
        ahead_s: float = 0.03,
        max_deaths: int = 3,
        idle_timeout_s: float = 60.0,
        check: bool = False,
    ) -> None:
        self.task_type: type[Task] = Task
        self.verify: Callable[[Machine], None] | None = None
        if check:
            self.task_type, self.verify = _checks()
        self.cores = cores
        self.inline_below_s = inline_below_s
        self.ahead_s = ahead_s
        self.max_deaths = max_deaths
        self.idle_timeout_s = idle_timeout_s
        self.now = 0.0

        self.tasks: dict[int, Task] = {}
        self.jobs: dict[int, Job] = {FUTURES: Job(FUTURES, lane, cores, None, futures=True)}
        self.autos = int(lane == "auto")  # how many jobs may run on either side
        self.families: dict[Hashable, Family] = {}
        self.most_families = jobs.MOST_FAMILIES
        self.hungry: dict[Job, None] = {}  # jobs that may have ready tasks
        self.deaths: dict[int, int] = {}  # task → how many workers it took down, if any
        self.causes: dict[Task, tuple[int, int]] = {}  # failed future → the task that raised, or died so many times

        self.pool = [Slot(number) for number in range(1, cores + 1)]
        self.slots: dict[int, Slot] = {slot.id: slot for slot in self.pool}
        self.next_slot = 1 << 20  # replacements; callers' ids are the shell's and negative
        self.idle = self.pool[::-1]  # pool slots without a batch; the one that was busy last is taken first
        self.busy: dict[Slot, None] = {}
        self.solo: Slot | None = None  # the only slot that has been busy since its batch began
        self.wide = 0  # how many slots run wide tasks, and tasks that hold the GIL
        self.gil = 0
        self.opening: dict[int, Slot | None] = {}  # stage or gate that is not open yet → the slot at work on it, if any
        self.pumping: dict[Slot, None] = {}  # slots that make open streams, and count as busy

        self.workers: dict[int, Worker] = {}
        self.next_worker = 1
        self.live = 0  # workers that were launched and not told to stop, and how many of them are up
        self.up = 0
        self.launch_s = 0.15  # what a new worker is expected to cost: see JobSubmitted
        # Work that held the GIL and ran here, while more of it waited, since a worker last did some.
        self.regret_s = 0.0
        self.worked_s = 0.0  # in slots, by tasks that are known one by one
        self.failed_starts = 0  # workers in a row that died before they were up
        self.roomy: dict[Worker, None] = {}  # usable workers that have room in their queue
        self.idle_workers: dict[Worker, None] = {}  # those that have nothing in it
        self.victims: dict[Worker, None] = {}  # those that have so much in it that another one should take half
        self.asked: dict[Worker, None] = {}  # those that were asked for it, and have made no progress since
        self.fetching: dict[int, dict[Task, None]] = {}  # task whose value is being published → tasks that wait for it
        self.fetches: dict[Task, int] = {}  # FETCHING task → how many inputs must be published before it can be placed

        self.out: list[c.Command] = []
        self.moved = False  # whether a ready task was found in a heap where it does not belong any more, and moved
        self.look_again = False  # whether what was placed of one job changes what may be placed of the others
        self.ending: list[Job] = []  # jobs whose last value has come in the event at hand
        self.releases: dict[tuple[int, ...], list[int]] = {}  # places → values that nobody needs since that event
        self.log = Log()

    @property
    def given_up(self) -> bool:
        """No worker can be started, so in lane ``auto`` everything runs here."""
        return self.failed_starts >= self.max_deaths and self.up == 0

    def handle(self, event: e.Event, now: float) -> list[c.Command]:
        """Takes in what happened at ``now`` (seconds, never going back) and returns what to do, in order."""
        self.now = now
        out = self.out = []
        _HANDLERS[type(event)](self, event)
        while self.ending:
            jobs.finish(self, self.ending.pop())
        placement.place(self)
        if self.releases:
            # First: what a batch reads next must find memory to be free, and nobody waits for a release.
            out[:0] = [c.Release(tasks, places) for places, tasks in self.releases.items()]
            self.releases = {}
        self.log.append(now, event, out)
        if self.verify is not None:
            self.verify(self)
        return out

    def quick_s(self, families: Iterable[Hashable]) -> float | None:
        """How long tasks of these families, one for each, will take together; None unless all are known to be quick.

        Quick tasks run one after the other, so their caller may as well do it without the machine.
        """
        total_s = 0.0
        for name, count in Counter(families).items():
            family = self.families.get(name)
            if family is None or family.kind != QUICK:
                return None
            total_s += count * family.wall_s
        return total_s

    def is_placed(self, task: int) -> bool:
        """Whether a task is queued in a slot or at a worker, or runs there."""
        found = self.tasks.get(task)
        return found is not None and found.state in (HERE_QUEUED, AWAY)

    def waits_for(self, task: int) -> tuple[list[int], int | None]:
        """The unfinished inputs of a task; and the slot that it is in the batch of, if it is."""
        found = self.tasks.get(task)
        if found is None:
            return [], None
        slot = next((slot.id for slot in self.slots.values() if found in slot.batch), None)
        return [dep.id for dep in found.deps if dep.state != DONE], slot

    def unfinished(self, job: int) -> list[int]:
        """The tasks of a job whose values somebody waits for."""
        return [task.id for task in self.tasks.values() if task.job.id == job and task.wanted and task.state in OPEN]

    def story(self, task: int) -> list[Entry]:
        """What became of a task, and why, as far as it is remembered."""
        return self.log.story(task)


def _checks() -> tuple[type[Task], Callable[[Machine], None]]:
    from headrace.sched.check import CheckedTask, verify  # only tests need it

    return CheckedTask, verify


_HANDLERS: dict[type, Callable[[Machine, Any], None]] = {
    e.JobSubmitted: jobs.job_submitted,
    e.QuickTasksRan: here.quick_tasks_ran,
    e.FutureSubmitted: jobs.future_submitted,
    e.FuturesDropped: jobs.futures_dropped,
    e.TasksCancelled: jobs.tasks_cancelled,
    e.JobCancelled: jobs.job_cancelled,
    e.SlotRan: here.slot_ran,
    e.SlotStalled: here.slot_stalled,
    e.SlotBlocked: here.slot_blocked,
    e.TaskDeferred: stages.task_deferred,
    e.GateOpened: stages.gate_opened,
    e.StageBegan: stages.stage_began,
    e.StreamOpened: stages.stream_opened,
    e.StageEnded: stages.stage_ended,
    e.WorkerStarted: workers.worker_started,
    e.WorkerRan: workers.worker_ran,
    e.ValuePublished: workers.value_published,
    e.TasksRevoked: workers.tasks_revoked,
    e.TaskRaised: workers.task_raised,
    e.TaskUnpicklable: workers.task_unpicklable,
    e.WorkerDied: workers.worker_died,
    e.WorkersIdled: workers.workers_idled,
}

__all__ = ["FUTURES", "Machine"]
