"""The records of the decision core, and which state may follow which.

A task goes through these states (``TRANSITIONS`` is the whole truth; ``check`` verifies what holds in each)::

    WAITING ──deps done──> READY ──> HERE (in the batch of a slot) ──> DONE
       ^  ^                  │ └───> AWAY (in the queue of a worker) ─> DONE
       │  └── value lost ────│──────────────────────────────────────────┘
       │                     └─────> FETCHING (an input is on its way) ─> READY
       └── returned, worker died ──── HERE, AWAY
    any but DONE ──> FAILED, CANCELLED
"""

from __future__ import annotations

from headrace.sched.policy import Family

WAITING, READY, FETCHING, HERE_QUEUED, AWAY, DONE, FAILED, CANCELLED = range(8)
STATE_NAMES = ("waiting", "ready", "fetching", "here", "away", "done", "failed", "cancelled")
TRANSITIONS: dict[int, frozenset[int]] = {
    WAITING: frozenset({READY, HERE_QUEUED, AWAY, FAILED, CANCELLED}),
    READY: frozenset({WAITING, FETCHING, HERE_QUEUED, AWAY, FAILED, CANCELLED}),
    FETCHING: frozenset({READY, WAITING, FAILED, CANCELLED}),
    HERE_QUEUED: frozenset({DONE, READY, WAITING, FAILED, CANCELLED}),
    AWAY: frozenset({DONE, READY, WAITING, FAILED, CANCELLED}),
    DONE: frozenset({WAITING, READY}),
    FAILED: frozenset(),
    CANCELLED: frozenset(),
}


class Task:
    """One task. A class with slots and plain ints, not a dataclass: a million of these are made in a few seconds."""

    __slots__ = (
        "consumers",
        "deaths",
        "dependents",
        "deps",
        "family",
        "fetches",
        "here",
        "id",
        "job",
        "pinned",
        "released",
        "size",
        "state",
        "waiting",
        "wanted",
        "workers",
    )

    def __init__(self, id: int, job: Job, deps: tuple[Task, ...], family: Family) -> None:
        self.id = id
        self.job = job
        self.deps = deps
        self.dependents: list[Task] = []
        self.family = family
        self.state = WAITING
        self.waiting = len(deps)  # dependencies that are not DONE
        self.consumers = 0  # dependents that are not DONE: they still need the value
        self.wanted = False  # the caller wants the value
        self.here = False  # the value is HERE, or published: every process can get at it
        self.workers: set[int] | None = None  # workers that hold a private copy of the value
        self.released = False  # DONE, and the value is forgotten
        self.size = -1
        self.pinned = False
        self.deaths = 0
        self.fetches = 0  # inputs that must be published before it can be placed

    def __repr__(self) -> str:
        return f"<Task {self.id} {STATE_NAMES[self.state]}>"


class Job:
    """One submitted graph, or (``futures``) the open-ended collection of all futures."""

    __slots__ = (
        "away",
        "caller",
        "engaged",
        "futures",
        "here",
        "id",
        "lane",
        "limit",
        "nested",
        "open",
        "quick_slot",
        "spread",
        "tasks",
        "wide",
    )

    def __init__(self, id: int, lane: str, limit: int, caller: Slot | None, nested: bool, futures: bool = False) -> None:
        self.id = id
        self.lane = lane
        self.limit = limit
        self.caller = caller
        self.nested = nested
        self.futures = futures
        self.tasks: list[Task] = []
        # Heaps of ids that may be READY. Entries go stale and are dropped when popped; an id may stand in several.
        self.here: list[int] = []
        self.wide: list[int] = []
        self.away: list[int] = []
        self.open = 0  # wanted values that are not HERE yet
        self.engaged: set[Slot | Worker] = set()  # who is busy with its tasks; never more than ``limit``
        self.quick_slot: Slot | None = None  # quick tasks hold the GIL by being Python: one slot at a time runs them
        self.spread: set[Task] = set()  # tasks with copies at workers

    def may_engage(self, who: Slot | Worker) -> bool:
        return len(self.engaged) < self.limit or who in self.engaged


class Slot:
    """A thread of this process that runs tasks: a pool thread, or the caller that waits for a job."""

    __slots__ = ("batch", "caller", "gil", "id", "job", "solo", "wide")

    def __init__(self, id: int, caller: bool = False) -> None:
        self.id = id
        self.caller = caller
        self.job: Job | None = None  # whose batch it runs
        self.batch: list[Task] = []
        self.solo = False  # nothing else has run in this process since its batch began
        self.wide = False  # runs a task that is parallel inside
        self.gil = False  # runs a task that holds the GIL


class Worker:
    """A worker process."""

    __slots__ = ("holds", "id", "idle_since", "load_s", "queue", "revoking", "stopping", "up")

    def __init__(self, id: int, now: float) -> None:
        self.id = id
        self.up = False
        self.stopping = False
        self.queue: dict[int, float] = {}  # task ids in the order in which it will run them, with their expected seconds
        self.load_s = 0.0
        self.holds: set[Task] = set()  # values it has, its own results and copies of inputs
        self.idle_since = now
        self.revoking = False
