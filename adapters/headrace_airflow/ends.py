"""Ends of tasks that need not be told at once: the scheduler has the success from the API server, and acts on that.

Each event of an executor costs the scheduler six queries, and several at once cost hardly more. In a chain of short
tasks these queries would come between a task and its successor.
"""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

_EVERY_S: Final = 1.0


class End(NamedTuple):
    key: Any
    state: Any
    info: str | None


class Ends:
    """Gathers the ends of tasks that have succeeded.

    Args:
        every_s: how long the scheduler waits for them at most, as long as anything runs.
    """

    def __init__(self, every_s: float = _EVERY_S) -> None:
        self._every_s = every_s
        self._succeeded: set[str] = set()
        """Submissions that have succeeded, as the API server knows, and have not ended."""
        self._untold: list[End] = []
        self._told_at = time.monotonic()

    def succeeded(self, submission: str) -> None:
        """A task has told the API server that it has succeeded."""
        self._succeeded.add(submission)

    def may_wait(self, submission: str) -> bool:
        """Whether the end of a task need not be told at once; asked once for each."""
        known = submission in self._succeeded
        self._succeeded.discard(submission)
        return known

    def add(self, end: End) -> None:
        """Keeps an end until it is ``due``."""
        self._untold.append(end)

    def forget(self, key: Any, submission: str | None) -> None:
        """A task is the executor's business no longer; ``None``: it has ended."""
        self._succeeded -= {submission}
        self._untold = [end for end in self._untold if end.key != key]

    def due(self, *, at_once: bool) -> list[End]:
        """Those that are to be told now, each once.

        Args:
            at_once: nothing runs that they could come between, or another is told anyway.
        """
        now = time.monotonic()
        if not self._untold or not (at_once or now - self._told_at >= self._every_s):
            return []
        self._told_at = now
        due, self._untold = self._untold, []
        return due
