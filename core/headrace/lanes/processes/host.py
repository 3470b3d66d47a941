"""What the lane asks of whoever runs it (the runtime; a small fake in tests)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from headrace.companions import States
from headrace.sched.events import Event
from headrace.task import Call

T = TypeVar("T")


class Host(Protocol):
    """Called from the lane's io thread and from whatever thread flushes; no lock of the lane is held meanwhile.

    ``post`` may call the lane again.
    """

    def post(self, event: Event) -> None:
        """Something has happened."""
        ...

    def deliver(self, task: int, value: Any) -> None:
        """A task's value is here; the event that says so follows."""
        ...

    def fail(self, task: int, error: BaseException) -> None:
        """A task's exception is here; the event that says so follows."""
        ...

    def said(self, task: int, companion: str, said: bytes) -> None:
        """A companion has said something while a task ran; see :mod:`headrace.companions`."""
        ...

    def call_of(self, task: int) -> tuple[Call, int]:
        """The task's call and the base of its job: the value of hole ``d`` is that of task ``base + d``.

        Raises:
            KeyError: the task is not known any more.
        """
        ...

    def deps_of(self, task: int) -> tuple[int, ...]:
        """The ids of the tasks whose values it needs."""
        ...

    def value_of(self, task: int) -> Any:
        """A value that is HERE.

        Raises:
            KeyError: it is not.
        """
        ...

    def states_of(self, task: int) -> States:
        """What of this process the workers should follow while they run the task's job."""
        ...

    def wanted(self, task: int) -> bool:
        """Whether the result is an output, to be sent along at once."""
        ...

    def key_of(self, task: int) -> str:
        """The task's name, for messages."""
        ...

    def call_foreign(self, fn: Callable[..., T], *args: Any) -> T:
        """Calls what runs users' code and may take long.

        Raises:
            KeyboardInterrupt: Ctrl-C, in the main thread; if it comes elsewhere in the lane, it should be kept waiting.
            BaseException: whatever ``fn`` raises.
        """
        ...
