"""A small host for the processes lane: it keeps calls, values and events, and decides nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from headrace.companions import States
from headrace.config import Settings
from headrace.lanes.processes.lane import ProcessLane
from headrace.sched.events import Event, Span, WorkerRan, WorkersIdled, WorkerStarted
from headrace.task import Call

E = TypeVar("E")
T = TypeVar("T")

WITHIN_S = 20.0


class FakeHost:
    """Real in everything that the lane sees; the tests play the decision core."""

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}
        self.values: dict[int, Any] = {}
        self.errors: dict[int, BaseException] = {}
        self.outputs: set[int] = set()
        self.states: States = {}
        self.heard: list[tuple[int, str, bytes]] = []
        self.events: list[Event] = []
        self.on_event: Callable[[Event], None] | None = None
        self._arrived = threading.Condition()

    # --- what the lane asks for -----------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        if self.on_event is not None:
            self.on_event(event)
        with self._arrived:
            self.events.append(event)
            self._arrived.notify_all()

    def deliver(self, task: int, value: Any) -> None:
        self.values[task] = value

    def fail(self, task: int, error: BaseException) -> None:
        self.errors[task] = error

    def said(self, task: int, companion: str, said: bytes) -> None:
        self.heard.append((task, companion, said))

    def call_of(self, task: int) -> tuple[Call, int]:
        return self.calls[task], 0

    def deps_of(self, task: int) -> tuple[int, ...]:
        found: list[int] = []
        for _, source in self.calls[task][3]:
            found += [source] if isinstance(source, int) else source
        return tuple(dict.fromkeys(found))

    def value_of(self, task: int) -> Any:
        return self.values[task]

    def states_of(self, task: int) -> States:
        return self.states

    def wanted(self, task: int) -> bool:
        return task in self.outputs

    def key_of(self, task: int) -> str:
        return f"task-{task}"

    def call_foreign(self, fn: Callable[..., T], *args: Any) -> T:
        return fn(*args)

    # --- what the tests ask for -----------------------------------------------------------------------------------

    def add(
        self, task: int, fn: Callable[..., Any], *args: Any, holes: Any = (), wanted: bool = False, **kw: Any
    ) -> int:
        """Adds a task; ``holes`` as in a call."""
        self.calls[task] = fn, args, kw or None, holes
        if wanted:
            self.outputs.add(task)
        return task

    def wait(self, condition: Callable[[], Any], what: str = "it") -> Any:
        """Waits until the condition is true, looking after every event; returns what it gave."""
        end_s = time.monotonic() + WITHIN_S
        with self._arrived:
            while not (result := condition()):
                if not self._arrived.wait(end_s - time.monotonic()):
                    raise TimeoutError(f"{what} did not happen; events: {self.events}")
            return result

    def of(self, kind: type[E]) -> list[E]:
        """The events of one kind so far."""
        return [event for event in list(self.events) if isinstance(event, kind)]

    def next(self, kind: type[E], **fields: Any) -> E:
        """Waits for an event of a kind whose fields have these values."""

        def find() -> E | None:
            for event in self.of(kind):
                if all(getattr(event, name) == value for name, value in fields.items()):
                    return event
            return None

        event: E = self.wait(find, f"{kind.__name__} {fields}")
        return event

    def ran(self, *tasks: int) -> None:
        """Waits until all these tasks were reported as run."""
        self.wait(lambda: {s.task for e in self.of(WorkerRan) for s in e.spans} >= set(tasks), f"the end of {tasks}")

    def span_of(self, task: int) -> Span:
        return next(s for e in self.of(WorkerRan) for s in e.spans if s.task == task)

    def execute(self, lane: ProcessLane, worker: int, *tasks: int) -> None:
        """Has a worker run these tasks, and waits for their end."""
        lane.run(worker, tasks)
        lane.flush()
        self.ran(*tasks)

    def story(self) -> list[str]:
        """The names of the events, but for the clock's."""
        return [type(event).__name__ for event in self.events if not isinstance(event, WorkersIdled)]


@contextmanager
def _hosted(workers: int = 1, **settings: Any) -> Iterator[tuple[FakeHost, ProcessLane]]:
    """A lane with started workers 1, 2, ...; closed at the end, and its books checked."""
    host = FakeHost()
    lane = ProcessLane(Settings(**settings), host)
    try:
        if workers:
            lane.launch(range(1, workers + 1))
            lane.flush()
            for worker in range(1, workers + 1):
                host.next(WorkerStarted, worker=worker)
        yield host, lane
        lane.check()
    finally:
        lane.close()


@pytest.fixture(autouse=True)
def _alone(core_alone: None) -> None:
    """Lanes are tested as they are without adapters, whatever other tests have imported."""


@pytest.fixture
def hosted() -> Any:
    """The context manager :func:`_hosted`: the tests' modules cannot import each other."""
    return _hosted
