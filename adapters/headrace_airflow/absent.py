"""What a process ahead of its task does not have: a supervisor, the task's context, the variables that describe it.

Whoever asks for one of these gives up: the process ends, and the task runs the function itself.
"""

from __future__ import annotations

import _thread
import atexit
import os
from collections.abc import Callable
from typing import Any, Final, NoReturn, cast

from headrace_airflow.containment import CannotContainError

GiveUp = Callable[[str], NoReturn]

_OF_THE_TASK: Final = b"AIRFLOW_CTX_"
"""What the names of variables begin with that Airflow sets for a task."""


def stand_in(give_up: GiveUp) -> None:
    """For the supervisor and the context.

    Args:
        give_up: ends the process; is told why.
    """
    from airflow.sdk.definitions._internal import contextmanager
    from airflow.sdk.execution_time import task_runner

    task_runner.SUPERVISOR_COMMS = _Supervisor(give_up)
    contextmanager._CURRENT_CONTEXT = _Contexts(give_up)


def hide_variables(give_up: GiveUp) -> None:
    """Keeps from a function that the environment has nothing for its task."""
    text, binary = cast("tuple[Any, Any]", (os.environ, os.environb))
    text._data = binary._data = _Variables(text._data, give_up)


class _Supervisor:
    def __init__(self, give_up: GiveUp) -> None:
        self._give_up = give_up

    def __getattr__(self, name: str) -> NoReturn:
        self._give_up("it asks for something of Airflow's")


class _Contexts:
    """Where Airflow has the context of the task that runs; is asked whether there is one first."""

    def __init__(self, give_up: GiveUp) -> None:
        self._give_up = give_up

    def __len__(self) -> NoReturn:
        self._give_up("it asks for its context")


class _Variables(dict[bytes, bytes]):
    """The environment, without knowing what it has for the task."""

    def __init__(self, known: dict[bytes, bytes], give_up: GiveUp) -> None:
        super().__init__(known)
        self._give_up = give_up

    def __getitem__(self, name: bytes) -> bytes:
        if name.startswith(_OF_THE_TASK):
            self._give_up(f"it asks for the variable {os.fsdecode(name)}")
        return super().__getitem__(name)

    def _all(self, *_: object) -> NoReturn:
        self._give_up("it asks for all variables of its environment")

    __iter__ = __len__ = items = keys = values = copy = _all


# --- what would be missed in the task's process, after the function ---


def check_watchers() -> None:
    """Raises CannotContainError if somebody may look at what functions leave in the memory of their task's process."""
    from airflow.sdk.configuration import conf
    from airflow.sdk.listener import get_listener_manager

    if get_listener_manager().has_listeners:
        raise CannotContainError("there are listeners of tasks")
    if conf.getboolean("traces", "otel_on", fallback=False):
        raise CannotContainError("there are traces of tasks")


def unfinished() -> tuple[int, int]:
    """How many threads there are, and how many functions wait for the end of the process: what outlives a function."""
    return _thread._count(), atexit._ncallbacks()
