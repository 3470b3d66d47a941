"""How busy the machine was with other things while a benchmark ran."""

from __future__ import annotations

import os
import time

import psutil


class OthersMeter:
    """How busy the machine was with things that are not ours: figures taken meanwhile are worth less."""

    def __init__(self) -> None:
        self._since = self._now()

    def share(self) -> float:
        """Share of all cores' time since the start that went to processes outside of this one's tree, 0 to 1."""
        wall, busy, ours = (now - then for now, then in zip(self._now(), self._since, strict=True))
        capacity = wall * (os.cpu_count() or 1)
        return max(0.0, min(1.0, (busy - ours) / capacity)) if capacity else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """(wall, CPU time of the whole machine, CPU time of this process and of all its ended descendants), seconds."""
        times = psutil.cpu_times()
        busy = times.user + times.system + times.nice + getattr(times, "steal", 0.0)
        own = os.times()
        return time.monotonic(), busy, own.user + own.system + own.children_user + own.children_system
