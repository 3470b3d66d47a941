"""The records of the decision core, and which state may follow which.

A task goes through these states (``TRANSITIONS`` is the whole truth; ``check`` verifies what holds in each)::

    WAITING ──deps done──> READY ──> HERE_QUEUED (in the batch of a slot) ──> DONE
       ^  ^                  │ └───> AWAY (in the queue of a worker) ───────> DONE
       │  └── value lost ────│──────────────────────────────────────────────────┘
       │                     └─────> FETCHING (an input is on its way) ─> READY
       └── returned, worker died ──── HERE_QUEUED, AWAY
    any but DONE ──> FAILED, CANCELLED

A task that needs nothing but its predecessors in the same batch or queue goes there straight from WAITING.
"""

from __future__ import annotations

from collections.abc import Set

from headrace.sched.policy import Family

WAITING, READY, FETCHING, HERE_QUEUED, AWAY, DONE, FAILED, CANCELLED = range(8)
STATE_NAMES = ("waiting", "ready", "fetching", "here", "away", "done", "failed", "cancelled")
OPEN = (WAITING, READY, FETCHING, HERE_QUEUED, AWAY)
TRANSITIONS: dict[int, frozenset[int]] = {
    WAITING: frozenset({READY, HERE_QUEUED, AWAY, FAILED, CANCELLED}),
    READY: frozenset({WAITING, FETCHING, HERE_QUEUED, AWAY, FAILED, CANCELLED}),
    FETCHING: frozenset({READY, WAITING, FAILED, CANCELLED}),
    HERE_QUEUED: frozenset({DONE, WAITING, FAILED, CANCELLED}),
    AWAY: frozenset({DONE, WAITING, FAILED, CANCELLED}),
    DONE: frozenset({WAITING}),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}


MAKES, READS, LIKELY = 1, 2, 4
"""What a stage does with streams: several bits may be set. Lane ``processes`` has stage processes for them, for which
threads of this process wait; LIKELY: its family has made streams, so it need not go to a worker first to find out."""


class Task:
    """One task. A class with slots and plain ints, not a dataclass: a million of these are made in a few seconds.

    A task that is DONE and whose value is neither ``here`` nor at any worker has been released.
    """

    __slots__ = (
        "consumers",
        "dependents",
        "deps",
        "family",
        "here",
        "id",
        "job",
        "pinned",
        "size",
        "stage",
        "state",
        "waiting",
        "wanted",
        "workers",
    )

    def __init__(self, id: int, job: Job, deps: tuple[Task, ...], family: Family, state: int = WAITING) -> None:
        self.id = id
        self.job = job
        self.deps = deps  # emptied once a future can neither be lost nor run again
        self.dependents: list[Task] | None = None
        self.family = family
        self.state = state
        self.waiting = len(deps)  # dependencies that are not DONE; means nothing once the task is DONE
        self.consumers = 0  # dependents that still need the value: not DONE, or, of a future, not settled (values.py)
        self.wanted = False  # the caller wants the value
        self.here = False  # the value is HERE, or published: every process can get at it
        self.workers: Set[int] | None = None  # workers that hold a private copy of the value
        self.size = -1
        self.stage = LIKELY if family.streams and job.lane == "processes" else 0
        self.pinned = False

    def __repr__(self) -> str:
        return f"<Task {self.id} {STATE_NAMES[self.state]}>"


class Job:
    """One submitted graph, or (``futures``) the open-ended collection of all futures."""

    __slots__ = (
        "away",
        "before_s",
        "began_s",
        "caller",
        "engaged",
        "free",
        "futures",
        "gil",
        "id",
        "lane",
        "limit",
        "moved",
        "nested",
        "open",
        "quick",
        "quick_slot",
        "roomy",
        "spread",
        "tasks",
        "wide",
    )

    def __init__(
        self, id: int, lane: str, limit: int, caller: Slot | None, nested: bool = False, futures: bool = False
    ) -> None:
        self.id = id
        self.lane = lane
        self.limit = limit
        self.caller = caller
        self.nested = nested
        self.futures = futures
        self.tasks: list[Task] = []  # of futures none: they come and go
        # Heaps of ids that may be READY, one for each kind of place (``heaps.heap_of``). Entries go stale, and a
        # task may belong in another heap by now: both is put right when the entry comes to the top.
        self.quick: list[int] = []
        self.free: list[int] = []
        self.wide: list[int] = []
        self.gil: list[int] = []
        self.away: list[int] = []
        self.open = 0  # wanted values that are not HERE yet
        self.engaged: dict[Slot | Worker, None] = {}  # who is busy with its tasks; never more than ``limit``
        self.roomy: dict[Worker, None] = {}  # those engaged workers that have room in their queue
        self.quick_slot: Slot | None = None  # quick tasks hold the GIL by being Python: one slot at a time runs them
        self.spread: dict[Task, None] = {}  # tasks with copies at workers
        # Since when it has had workers, and the work that had been done by then: see policy.judge.
        self.began_s: float | None = None
        self.before_s = 0.0
        self.moved: dict[Family, None] = {}  # families of which lane ``auto`` has sent tasks to workers

    def judged_from(self, now: float) -> None:
        """There are workers for it from now on."""
        self.began_s = now
        self.before_s = sum(task.family.wall_s for task in self.tasks if task.state == DONE)

    def may_engage(self, who: Slot | Worker) -> bool:
        return len(self.engaged) < self.limit or who in self.engaged

    @property
    def hungry(self) -> bool:
        """Whether any of its tasks may be READY."""
        return bool(self.quick or self.free or self.wide or self.gil or self.away)


class Slot:
    """A thread of this process that runs tasks: a pool thread, or the caller that waits for a job."""

    __slots__ = ("batch", "blocked", "caller", "gil", "id", "job", "since_s", "solo", "stalled", "wide")

    def __init__(self, id: int, caller: bool = False) -> None:
        self.id = id
        self.caller = caller
        self.job: Job | None = None  # whose batch it runs
        self.batch: list[Task] = []
        self.since_s = 0.0  # when it was given that
        self.solo = False  # nothing else has run in this process since its batch began
        self.wide = False  # runs a task that is parallel inside
        self.gil = False  # runs a task that holds the GIL
        self.stalled = False  # has been at one task for long, which may be waiting for another
        # Waits, or has lent its place to another: replaced in the pool, gone at the end of its batch.
        self.blocked = False


class Worker:
    """A worker process."""

    __slots__ = ("alone", "heard", "holds", "id", "idle_since", "jobs", "load_s", "queue", "revoking", "stopping", "up")

    def __init__(self, id: int, now: float) -> None:
        self.id = id
        self.alone: frozenset[int] = frozenset({id})
        self.up = False
        self.stopping = False
        self.queue: dict[int, tuple[Task, float]] = {}  # in the order in which it will run them, with expected seconds
        self.load_s = 0.0
        self.jobs: dict[Job, int] = {}  # open jobs → how many of their tasks are in the queue
        self.holds: dict[Task, None] = {}  # values it has, its own results and copies of inputs
        self.idle_since = now
        self.heard = now  # when it last made progress, or began
        self.revoking = False  # was asked to give tasks back, and has not answered
