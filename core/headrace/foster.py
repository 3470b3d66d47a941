"""Who else may start the worker processes of this process.

Where somebody keeps warm processes to fork from (in a task of an Airflow node, for example), an adapter says so here:
workers then have imported already what this process has. :mod:`headrace.lanes.processes.launcher` asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Order:
    """A process to be started: it calls a function, ``function(*descriptors, *numbers)``, which never returns.

    Args:
        module: where the function is.
        function: its name.
        descriptors: what it gets of this process's; their numbers are others there.
        numbers: what it gets besides.
        environment: all of its environment.
    """

    module: str
    function: str
    descriptors: Sequence[int]
    numbers: Sequence[int]
    environment: Mapping[str, str]


class Fostered(Protocol):
    """A process that somebody else has started for this one."""

    pid: int
    pid_fd: int
    """Whoever ordered the process closes it."""

    def kill(self) -> None:
        """Kills it, unless it has ended; called as long as ``pid_fd`` is open."""
        ...

    def collect(self) -> tuple[int, int] | None:
        """Blocks until it has ended; returns its exit code and the most memory it had, in bytes, if that is known."""
        ...

    def forget(self) -> None:
        """In a forked child of who ordered it: it is no concern of this process's."""
        ...


start: Callable[[Order], Fostered] | None = None
"""Starts a process, or raises OSError: then this process starts it by itself. ``None``: there is nobody to ask."""
