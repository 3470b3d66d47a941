"""How busy tasks are, and whether the node has memory left: what the kernel says."""

from __future__ import annotations

import os
import time
from typing import Final

from headrace_airflow.memory import cgroups

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_LEAST_FREE: Final = 0.05
_LEAST_FREE_BYTES: Final = 256 * 2**20


class Load:
    """CPU use of process groups between two measurements."""

    def __init__(self) -> None:
        self._before: dict[int, float] = {}
        self._at = time.monotonic()

    def measure(self, groups: set[int]) -> dict[int, float]:
        """How many cpus each group has used since the last measurement; groups new since then are left out.

        One that has ended uses none, even if it was never measured: its task may go on in another group's processes.
        """
        now = time.monotonic()
        elapsed = max(now - self._at, 1e-3)
        seconds = _cpu_seconds(groups)
        found = {
            group: max(0.0, (seconds[group] - self._before[group]) / elapsed)
            for group in seconds
            if group in self._before
        } | dict.fromkeys(groups - seconds.keys(), 0.0)
        self._before, self._at = seconds, now
        return found


def _cpu_seconds(groups: set[int]) -> dict[int, float]:
    """CPU seconds of all processes of each group, and of what they have waited for."""
    found: dict[int, float] = {}
    for name in os.listdir("/proc") if groups else ():
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        group = int(fields[2])
        if group in groups:
            found[group] = found.get(group, 0.0) + sum(map(int, fields[11:15])) / _TICKS
    return found


def memory_bytes() -> tuple[int, int]:
    """All memory, and how much of it is free: of the machine, or of a cgroup of this process's that has less."""
    with open("/proc/meminfo") as file:
        values = dict(line.split(":") for line in file)
    total, free = (int(values[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    groups = cgroups()
    return min([total, *(group.limit_bytes for group in groups)]), min([free, *(group.free_bytes for group in groups)])


def memory_is_plenty() -> bool:
    """Whether another task may start, as far as memory goes."""
    total, free = memory_bytes()
    return free >= min(_LEAST_FREE_BYTES, _LEAST_FREE * total)
