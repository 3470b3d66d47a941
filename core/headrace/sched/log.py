"""The log of the decision core: what happened, when, and what was commanded. Bounded, so that it may always be on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from headrace.sched.commands import Command
from headrace.sched.events import Event, JobSubmitted, SlotRan, WorkerRan

CAPACITY = 5_000
"""How many tasks the entries may name together: about 2 MB. More would be cold memory to free with every event."""

TASKS = ("tasks", "returned", "arrived")


class Entry(NamedTuple):
    now: float
    event: Event
    commands: Sequence[Command]
    weight: int


class Log:
    """The latest events and commands. As long as it is ``complete``, the same events make a new machine the same."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.complete = True
        self._capacity = capacity
        self._weight = 0
        self._entries: deque[tuple[float, Event, Sequence[Command], int]] = deque()  # Entry takes longer to make

    def __iter__(self) -> Iterator[Entry]:
        return map(Entry._make, self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, now: float, event: Event, commands: Sequence[Command]) -> None:
        # Nearly every id that a command names has been, or will be, named by an event: counting one side is enough.
        weight = 1 + len(commands)
        if isinstance(event, (WorkerRan, SlotRan)):
            weight += len(event.spans)
        elif isinstance(event, JobSubmitted):
            weight += len(event.deps)
        self._entries.append((now, event, commands, weight))
        self._weight += weight
        while self._weight > self._capacity:
            _, _, _, oldest_weight = self._entries.popleft()
            self._weight -= oldest_weight
            self.complete = False

    def story(self, task: int) -> list[Entry]:
        """The entries that name a task: what became of it, and why."""
        return [entry for entry in self if _names(entry.event, task) or any(_names(x, task) for x in entry.commands)]


def _names(record: Any, task: int) -> bool:
    if hasattr(record, "base"):
        return bool(record.base <= task < record.base + len(record.deps))
    if task in (getattr(record, "task", None), getattr(record, "running", None), getattr(record, "cause", None)):
        return True
    if any(span.task == task for span in getattr(record, "spans", ())):
        return True
    return any(task in getattr(record, name, ()) for name in TASKS)
