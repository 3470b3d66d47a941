"""Which task of a node starts when, and from which zygote: the daemon's decisions, pure.

Rules
- Events in (past tense), commands out (imperative). No clock, no file, no process: times come with the events.
- A task starts at most once. Nothing is ever retried here: what became of a task is reported, Airflow decides.
- Order: priority, then arrival. The first that does not fit holds back those behind it, so that large tasks get their
  turn; but one that waits for declared memory only those that declare some too, and one that waits for its zygote
  nobody.
- A task that declares cpus or memory has them as long as it runs. One that does not counts as one cpu until it has been
  measured, then as what it uses: a hundred tasks that sleep may run beside each other.
- With nothing running, the first always fits: a task larger than the node runs alone.
- One that has waited ``longest_wait_s`` no longer waits for cpus, only for memory: Airflow gives up tasks that stay
  queued for ten minutes, and too many at once are only slower, as they are in stock Airflow.
- A zygote holds a parsed DAG file. It is replaced when a file it read has changed, never reloaded. Where a file cannot
  be held parsed (it fails, leaks threads, asks for Variables, ...), its tasks start from the bare zygote and parse for
  themselves, as stock Airflow does; so do tasks that have waited ``patience_s`` for a parse. A zygote that ends by
  itself is replaced, but not for ever: see ``_MOST_DEATHS``.
- What runs ahead of its task (speculation.py) never keeps a task from starting.

    waiting ──StartTask──▶ running ──TaskEnded──▶ (gone)
       └──TaskRevoked──▶ (gone)    └──TaskRevoked──▶ KillTask, stays until TaskEnded
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from headrace_airflow.speculation import (
    AheadDone,
    AheadGone,
    ConsumerOffered,
    Instance,
    Room,
    RunAhead,
    Speculation,
    StopAhead,
)

FileKey: TypeAlias = tuple[str, str, str]
"""Bundle name, bundle version, path of the DAG file inside the bundle."""

BARE = 0
"""The number of the zygote that holds no DAG file; the daemon sees to it that there is one (zygotes.py)."""

_FULL_AFTER_S = 5.0
"""A node is full when a task that it holds back has waited so long."""

_DECLARED_MEMORY = "memory that other tasks have declared"

_MOST_DEATHS = 3
"""When so many zygotes of a file have ended by themselves, and no task of theirs has succeeded, it cannot be held."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the node may be used for.

    Args:
        cpus: how much measured or declared CPU may be in use before another task starts.
        memory_bytes: how much memory may be declared.
        tasks: how many tasks at most, whatever they use.
        patience_s: how long a task waits for the parse of its file.
        idle_s: how long an unused zygote is kept.
        zygotes: how many zygotes are kept; the one not used for the longest time goes.
        longest_wait_s: how long a task waits for cpus.
    """

    cpus: float
    memory_bytes: int
    tasks: int
    patience_s: float = 10.0
    idle_s: float = 300.0
    zygotes: int = 16
    longest_wait_s: float = 60.0


# --- events ---


@dataclass(frozen=True, slots=True)
class TaskSubmitted:
    """A workload has come in.

    Args:
        file: the DAG file that it comes from; ``None``: it needs none.
        priority: the highest goes first.
        cpus: what it declares; ``None``: to be measured.
        memory_bytes: what it declares.
        instance: the task of a run that it is; ``None``: nothing can run ahead of it.
    """

    task: str
    file: FileKey | None
    priority: int = 0
    cpus: float | None = None
    memory_bytes: int = 0
    instance: Instance | None = None


@dataclass(frozen=True, slots=True)
class TaskRevoked:
    task: str


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """``succeeded``: it has said so, and Airflow has heard it."""

    task: str
    succeeded: bool = False


@dataclass(frozen=True, slots=True)
class TaskMeasured:
    """How many cpus a running task uses."""

    task: str
    cpus: float


@dataclass(frozen=True, slots=True)
class SourcesChanged:
    """``task`` was to start from a zygote that holds what no longer is: it has not started."""

    zygote: int
    task: str


@dataclass(frozen=True, slots=True)
class ZygoteReady:
    zygote: int


@dataclass(frozen=True, slots=True)
class ZygoteUnfit:
    """The file cannot be held parsed; as long as it does not change, its tasks parse for themselves."""

    zygote: int


@dataclass(frozen=True, slots=True)
class ZygoteDied:
    """It has ended by itself. ``task`` was to start from it: it has not started."""

    zygote: int
    task: str = ""


@dataclass(frozen=True, slots=True)
class MemoryMeasured:
    """Whether the node has memory left for another task."""

    plenty: bool


@dataclass(frozen=True, slots=True)
class Drained:
    """No further task shall start (or: may again)."""

    on: bool


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


Event: TypeAlias = (
    TaskSubmitted
    | TaskRevoked
    | TaskEnded
    | TaskMeasured
    | SourcesChanged
    | ZygoteReady
    | ZygoteUnfit
    | ZygoteDied
    | MemoryMeasured
    | Drained
    | Ticked
    | ConsumerOffered
    | AheadDone
    | AheadGone
)


# --- commands ---


@dataclass(frozen=True, slots=True)
class StartTask:
    """``zygote`` may be ``BARE``. The daemon looks at the sources first, and may answer with SourcesChanged.

    ``ahead``: what has run ahead of it; empty: nothing.
    """

    task: str
    zygote: int
    ahead: str = ""


@dataclass(frozen=True, slots=True)
class DropTask:
    """It never ran."""

    task: str


@dataclass(frozen=True, slots=True)
class KillTask:
    task: str


@dataclass(frozen=True, slots=True)
class StartZygote:
    zygote: int
    file: FileKey


@dataclass(frozen=True, slots=True)
class StopZygote:
    """It takes no further task, and ends with the last one that came from it."""

    zygote: int


Command: TypeAlias = StartTask | DropTask | KillTask | StartZygote | StopZygote | RunAhead | StopAhead


# --- state ---


@dataclass(slots=True)
class Task:
    """What has come in and not ended."""

    key: str
    file: FileKey | None
    order: tuple[int, int]
    """The smallest goes first."""
    declared_cpus: float | None
    memory_bytes: int
    since: float
    """When it came in."""
    instance: Instance | None = None
    running: bool = False
    zygote: int = BARE
    measured_cpus: float | None = None
    revoked: bool = False
    patient: bool = True
    """Whether it still waits for cpus."""

    @property
    def cpus(self) -> float:
        if self.declared_cpus is not None:
            return self.declared_cpus
        return 1.0 if self.measured_cpus is None else self.measured_cpus


@dataclass(slots=True)
class Zygote:
    """One that holds a file, or shall, or cannot; the bare one is none of these."""

    number: int
    file: FileKey
    used: float
    """When a task last asked for it."""
    state: Literal["parsing", "ready", "unfit"] = "parsing"


@dataclass(slots=True)
class Admission:
    """The machine. ``handle`` is all there is to call; the rest may be read."""

    limits: Limits
    tasks: dict[str, Task] = field(default_factory=dict)
    zygotes: dict[FileKey, Zygote] = field(default_factory=dict)
    plenty: bool = True
    drained: bool = False
    full: bool = False
    """Whether what comes now would wait: better that it does so in the scheduler, which goes by priorities anew."""
    ahead: Speculation = field(default_factory=Speculation)
    _deaths: dict[FileKey, int] = field(default_factory=dict)
    """How many zygotes of a file have ended by themselves, since a task of one succeeded or the file changed."""
    _arrivals: int = 0
    _numbers: int = BARE

    def handle(self, event: Event, now: float) -> list[Command]:
        """Takes one event in and returns what is to be done, in order.

        Args:
            event: what happened. Events about tasks and zygotes that are no longer known are ignored.
            now: seconds of a monotonic clock, never less than before.
        """
        commands: list[Command] = []
        match event:
            case TaskSubmitted():
                self._submit(event, now)
            case TaskRevoked(task):
                self._revoke(task, commands)
            case TaskEnded(task, succeeded):
                self._end(task, succeeded)
                commands += self.ahead.ended(task, succeeded, now)
            case TaskMeasured(task, cpus):
                if found := self.tasks.get(task):
                    found.measured_cpus = cpus
            case SourcesChanged(number, task):
                self._return(task)
                if zygote := self._forget(number, commands):
                    self._deaths.pop(zygote.file, None)
            case ZygoteReady(number):
                self._settle(number, "ready", now)
            case ZygoteUnfit(number):
                self._settle(number, "unfit", now)
            case ZygoteDied(number, task):
                self._return(task)
                self._died(number, commands)
            case MemoryMeasured(plenty):
                self.plenty = plenty
            case Drained(on):
                self.drained = on
            case Ticked():
                self._retire(now, commands)
                commands += self.ahead.tick(now)
            case ConsumerOffered():
                commands += self._offer(event)
            case AheadDone(id):
                self.ahead.done(id)
            case AheadGone(id):
                commands += self.ahead.gone(id)
        self._start_what_fits(now, commands)
        commands += self._run_ahead()
        return commands

    def waits_for(self, key: str) -> str:
        """What keeps a task from starting, for people; empty where nothing does."""
        task = self.tasks.get(key)
        if task is None or task.running:
            return ""
        if self.drained:
            return "the end of the drain"
        zygote = self.zygotes.get(task.file) if task.file else None
        if zygote is not None and zygote.state == "parsing":
            return "the parse of its DAG file"
        return self._lacks(task) or "the tasks before it"

    def _submit(self, event: TaskSubmitted, now: float) -> None:
        if event.task in self.tasks:
            return
        self._arrivals += 1
        order = (-event.priority, self._arrivals)
        self.tasks[event.task] = Task(
            event.task, event.file, order, event.cpus, event.memory_bytes, now, event.instance
        )

    def _revoke(self, key: str, commands: list[Command]) -> None:
        task = self.tasks.get(key)
        if task is None or task.revoked:
            return
        if task.running:
            task.revoked = True
            commands.append(KillTask(key))
        else:
            del self.tasks[key]
            commands.append(DropTask(key))

    def _end(self, key: str, succeeded: bool) -> None:
        task = self.tasks.pop(key, None)
        if succeeded and task is not None and task.file is not None and task.zygote != BARE:
            self._deaths.pop(task.file, None)

    def _return(self, key: str) -> None:
        if task := self.tasks.get(key):
            task.running = False
            task.zygote = BARE

    def _by_number(self, number: int) -> Zygote | None:
        return next((z for z in self.zygotes.values() if z.number == number), None)

    def _forget(self, number: int, commands: list[Command]) -> Zygote | None:
        if zygote := self._by_number(number):
            del self.zygotes[zygote.file]
            commands += self.ahead.leave(number)
            commands.append(StopZygote(number))
        return zygote

    def _settle(self, number: int, state: Literal["ready", "unfit"], now: float) -> None:
        if zygote := self._by_number(number):
            zygote.state = state
            zygote.used = now

    def _died(self, number: int, commands: list[Command]) -> None:
        zygote = self._by_number(number)
        if zygote is None or zygote.state == "unfit":
            return
        deaths = self._deaths[zygote.file] = self._deaths.get(zygote.file, 0) + 1
        if zygote.state == "parsing" or deaths >= _MOST_DEATHS:
            zygote.state = "unfit"  # do not have it crash again for every task
            commands += self.ahead.leave(number)
        else:
            self._forget(number, commands)

    def _retire(self, now: float, commands: list[Command]) -> None:
        in_use = {task.file for task in self.tasks.values() if not task.running}
        busy = {task.zygote for task in self.tasks.values() if task.running}  # it lives as long anyway
        busy |= {ahead.offer.zygote for ahead in self.ahead.known.values()}
        idle = sorted(
            (z for z in self.zygotes.values() if z.file not in in_use and z.number not in busy),
            key=lambda z: z.used,
        )
        surplus = len(self.zygotes) - self.limits.zygotes
        for place, zygote in enumerate(idle):
            if zygote.state != "parsing" and (place < surplus or now - zygote.used >= self.limits.idle_s):
                self._forget(zygote.number, commands)

    def _start_what_fits(self, now: float, commands: list[Command]) -> None:
        waiting = sorted((task for task in self.tasks.values() if not task.running), key=lambda task: task.order)
        self.full = False
        if self.drained:
            self.full = any(now - task.since >= _FULL_AFTER_S for task in waiting)
            return
        memory_is_awaited = False
        for task in waiting:
            if memory_is_awaited and task.memory_bytes:
                continue
            number = self._zygote_for(task, now, commands)
            if number is None:
                continue
            task.patient = now - task.since < self.limits.longest_wait_s
            if lacking := self._lacks(task):
                if lacking != _DECLARED_MEMORY:
                    self.full = now - task.since >= _FULL_AFTER_S
                    return
                memory_is_awaited = True
                continue
            task.running = True
            task.zygote = number
            commands.append(StartTask(task.key, number, self._take_ahead(task, commands)))

    def _take_ahead(self, task: Task, commands: list[Command]) -> str:
        """What has run ahead of a task that starts now, if it can use it."""
        if task.instance is None:
            return ""
        found = self.ahead.ahead_of(task.instance, task.zygote)
        if found:
            self.ahead.take(found, task.key)
        else:
            commands += self.ahead.forget(task.instance)
        return found

    def _offer(self, event: ConsumerOffered) -> list[Command]:
        """An offer is late if one of those that feed it has ended: nobody will say any more how."""
        if all(it in self.tasks or it in self.ahead.known or it in self.ahead.taken for it in event.feeders):
            return [*self.ahead.offer(event)]
        return [StopAhead(event.id, event.zygote)]

    def _run_ahead(self) -> list[Command]:
        if not self.ahead.known:
            return []
        running = [task for task in self.tasks.values() if task.running]
        room = Room(
            self.limits.cpus - sum(task.cpus for task in running),
            self.limits.memory_bytes - sum(task.memory_bytes for task in running),
            self.limits.tasks - len(running) if self.plenty else 0,
        )
        waits = len(running) < len(self.tasks)
        return [*self.ahead.make_room(room), *(() if waits or self.drained else self.ahead.run_what_fits(room))]

    def _zygote_for(self, task: Task, now: float, commands: list[Command]) -> int | None:
        """The zygote that a task starts from; ``None``: it has to wait for the parse."""
        if task.file is None:
            return BARE
        zygote = self.zygotes.get(task.file)
        if zygote is None:
            self._numbers += 1
            self.zygotes[task.file] = Zygote(self._numbers, task.file, now)
            commands.append(StartZygote(self._numbers, task.file))
            return None
        zygote.used = now
        if zygote.state == "ready":
            return zygote.number
        if zygote.state == "unfit" or now - task.since >= self.limits.patience_s:
            return BARE
        return None

    def _lacks(self, task: Task) -> str:
        """What there is not enough of for another task; empty: it fits."""
        others = [other for other in self.tasks.values() if other.running]
        if not others:
            return ""
        if not self.plenty:
            return "free memory on the node"
        if len(others) >= self.limits.tasks:
            return "the end of another task: no more may run at once"
        if task.patient and sum(other.cpus for other in others) + task.cpus > self.limits.cpus:
            return "cpus"
        if sum(other.memory_bytes for other in others) + task.memory_bytes > self.limits.memory_bytes:
            return _DECLARED_MEMORY
        return ""
