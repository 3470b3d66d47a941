"""Which consumers of streams run ahead of Airflow, and for how long: decisions, pure.

A consumer may run ahead while what feeds it still runs: its function, in a process of its own, before there is a task
that Airflow has started. When Airflow starts that task, it takes what the process has made.

Rules
- What runs ahead has only the room that tasks leave: it starts when no task waits, and when a task starts that there is
  no room for beside it, the newest goes first.
- It goes when one of those that feed it ends in any other way than with success, or goes itself.
- When all that feed it have succeeded, its own task is due. If that does not come within ``longest_s``, it goes.
- Nothing here decides whether the task's value is right: the task compares what it was given with what was read ahead.

    offered ──RunAhead──▶ running ──AheadDone──▶ done
       └──────────────────────┴─────taken───────────┴──▶ (the task's)     StopAhead: (gone)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

LONGEST_S: Final = 60.0


class Instance(NamedTuple):
    """A task of a DAG run; mapped ones are none."""

    dag_id: str
    run_id: str
    task_id: str


@dataclass(frozen=True, slots=True)
class ConsumerOffered:
    """A consumer could begin.

    Args:
        id: of the process that it would be.
        instance: the task that it is ahead of.
        zygote: where it would be forked, and that task too.
        feeders: the tasks, and what runs ahead, whose streams it would read.
        cpus: what it declares, or 1.
    """

    id: str
    instance: Instance
    zygote: int
    feeders: frozenset[str]
    cpus: float = 1.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class AheadDone:
    """It has made its value, and waits for its task."""

    id: str


@dataclass(frozen=True, slots=True)
class AheadGone:
    """It has failed, or given up."""

    id: str


@dataclass(frozen=True, slots=True)
class RunAhead:
    id: str
    zygote: int


@dataclass(frozen=True, slots=True)
class StopAhead:
    """And forget it: nobody will take it."""

    id: str
    zygote: int


Command = RunAhead | StopAhead


@dataclass(slots=True)
class Ahead:
    offer: ConsumerOffered
    feeders: set[str]
    """Those of which it is not known yet how they end."""
    running: bool = False
    done: bool = False
    due_since: float | None = None
    """When the last that feeds it has succeeded."""

    @property
    def state(self) -> str:
        """For people."""
        return "done" if self.done else "running" if self.running else "waiting"

    @property
    def cpus(self) -> float:
        return self.offer.cpus if self.running and not self.done else 0.0

    @property
    def memory_bytes(self) -> int:
        return self.offer.memory_bytes if self.running else 0


class Room(NamedTuple):
    """What tasks leave: cpus and declared memory, and how many processes."""

    cpus: float
    memory_bytes: int
    tasks: int


@dataclass(slots=True)
class Speculation:
    """The machine; oldest offers first."""

    longest_s: float = LONGEST_S
    known: dict[str, Ahead] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)
    """What ran ahead → its task, which has not ended."""

    def offer(self, event: ConsumerOffered) -> list[Command]:
        """Takes an offer in; an earlier one for the same task goes."""
        commands = self.forget(event.instance)
        self.known[event.id] = Ahead(event, {self.taken.get(feeder, feeder) for feeder in event.feeders})
        return commands

    def done(self, id: str) -> None:
        if ahead := self.known.get(id):
            ahead.done = True

    def gone(self, id: str) -> list[Command]:
        """It has gone by itself: so does what it fed."""
        return self._stop(id)

    def ended(self, feeder: str, succeeded: bool, now: float) -> list[Command]:
        """A task has ended, in whatever way."""
        self.taken = {id: task for id, task in self.taken.items() if task != feeder}
        fed = [ahead for ahead in self.known.values() if feeder in ahead.feeders]
        if not succeeded:
            return [command for ahead in fed for command in self._stop(ahead.offer.id)]
        for ahead in fed:
            ahead.feeders.remove(feeder)
            if not ahead.feeders:
                ahead.due_since = now
        return []

    def ahead_of(self, instance: Instance, zygote: int) -> str:
        """What runs ahead of a task that is to start from a zygote; empty: nothing."""
        return next(
            (
                id
                for id, ahead in self.known.items()
                if ahead.offer.instance == instance and ahead.offer.zygote == zygote and ahead.running
            ),
            "",
        )

    def take(self, id: str, task: str) -> None:
        """It is the task's now; and so is what it feeds fed by the task."""
        del self.known[id]
        self.taken[id] = task
        for ahead in self.known.values():
            if id in ahead.feeders:
                ahead.feeders.remove(id)
                ahead.feeders.add(task)

    def forget(self, instance: Instance) -> list[Command]:
        """What is known ahead of a task goes: nobody will take it."""
        ids = [id for id, ahead in self.known.items() if ahead.offer.instance == instance]
        return [command for id in ids for command in self._stop(id)]

    def run_what_fits(self, room: Room) -> list[Command]:
        """Starts what there is room for, when no task waits."""
        commands: list[Command] = []
        for id, ahead in self.known.items():
            if not ahead.running and self._fits(room, ahead.offer):
                ahead.running = True
                commands.append(RunAhead(id, ahead.offer.zygote))
        return commands

    def make_room(self, room: Room) -> list[Command]:
        """Stops the newest until the rest fits into what tasks leave."""
        commands: list[Command] = []
        for id in reversed(list(self.known)):
            if id in self.known and self.known[id].running and not self._fits(room):
                commands += self._stop(id)
        return commands

    def leave(self, zygote: int) -> list[Command]:
        """A zygote takes no further task: nobody will take what it has forked ahead."""
        ids = [id for id, ahead in self.known.items() if ahead.offer.zygote == zygote]
        return [command for id in ids for command in self._stop(id)]

    def tick(self, now: float) -> list[Command]:
        """Time has passed."""
        late = [
            id
            for id, ahead in self.known.items()
            if ahead.due_since is not None and now - ahead.due_since >= self.longest_s
        ]
        return [command for id in late for command in self._stop(id)]

    def _stop(self, id: str) -> list[Command]:
        return list(self._stopped(id))

    def _stopped(self, id: str) -> Iterator[Command]:
        ahead = self.known.pop(id, None)
        if ahead is None:
            return
        yield StopAhead(id, ahead.offer.zygote)
        for other in [other for other in self.known.values() if id in other.feeders]:
            yield from self._stopped(other.offer.id)

    def _fits(self, room: Room, more: ConsumerOffered | None = None) -> bool:
        running = [ahead for ahead in self.known.values() if ahead.running]
        cpus = sum(ahead.cpus for ahead in running) + (more.cpus if more else 0.0)
        memory_bytes = sum(ahead.memory_bytes for ahead in running) + (more.memory_bytes if more else 0)
        count = len(running) + (more is not None)
        return cpus <= room.cpus and memory_bytes <= room.memory_bytes and count <= room.tasks
