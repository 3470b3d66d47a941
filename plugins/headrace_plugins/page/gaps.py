"""How long tasks waited between the end of the tasks before them and their own start. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

_STARTED: Final = frozenset({"running", "success", "failed"})
"""Other states with a start date are not a process's: the scheduler set them."""


def gap_s(
    state: str | None, first: bool, start: float, upstream: Collection[str], ends: Mapping[str, float | None]
) -> float | None:
    """The seconds from the end of the last task before this one to its start; ``None``: it did not wait for that.

    Args:
        state: its state.
        first: whether it started for the first time: what goes before a second try, or a sensor's next look, is no gap.
        start: when it started, in seconds on the clock of ``ends``.
        upstream: the ids of the tasks right before it.
        ends: when all instances of a task had ended; ``None``: one has not.
    """
    ended = [ends.get(task_id) for task_id in upstream]
    known = [end for end in ended if end is not None]
    if state not in _STARTED or not first or not known or len(known) < len(ended):
        return None
    gap = start - max(known)
    return gap if gap >= 0 else None  # a trigger rule let it start earlier


def summary(gaps: Sequence[float]) -> dict[str, Any] | None:
    """How many gaps there were, and how long, in seconds; ``None``: there was none."""
    if not gaps:
        return None
    return {"count": len(gaps), "median_s": statistics.median(gaps), "longest_s": max(gaps)}
