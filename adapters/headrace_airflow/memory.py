"""Amounts of memory: how they are written in settings, and how much of it this process may use. Imports no Airflow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from headrace.cgroups import folders

_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 10**3, "m": 1 << 20, "mib": 1 << 20, "mb": 10**6,
                 "g": 1 << 30, "gib": 1 << 30, "gb": 10**9, "t": 1 << 40, "tib": 1 << 40, "tb": 10**12}  # fmt: skip
_UNLIMITED: Final = 1 << 60
"""Version 1 of cgroups writes a number like this where there is no limit."""
_NAMES: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of each version: the files with limit and use, and the line of memory.stat that says what files have of that."""


def parse_bytes(value: object) -> int:
    """``4GiB``, ``500 MB``, ``1048576`` as a number of bytes.

    Raises:
        ValueError: it is none of these, or negative.
    """
    text = str(value).strip().lower()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    factor = _UNITS.get(text[len(number) :].strip())
    if factor is None:
        raise ValueError(f"{value!r} is no amount of memory; write, for example, 4GiB")
    amount = float(number) * factor
    if not 0 <= amount < 2**63:
        raise ValueError(f"{value!r} is no amount of memory")
    return int(amount)


class Cgroup(NamedTuple):
    """One that limits memory."""

    limit_bytes: int
    free_bytes: int
    """What may still be used, with what the kernel can take back of files that nobody has read for a while."""


def memory_limit_bytes() -> int:
    """The machine's memory, or less where a cgroup of this process has a limit."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([limit, *(group.limit_bytes for group in cgroups())])


def cgroups() -> list[Cgroup]:
    """Those of this process and everything above it that limit memory, in both versions."""
    found = (_cgroup(folder, *names) for folder in folders("memory") for names in _NAMES)
    return [group for group in found if group is not None]


def _cgroup(folder: Path, limit_name: str, used_name: str, cache_name: str) -> Cgroup | None:
    try:
        limit = (folder / limit_name).read_text().strip()
        if not limit.isdigit() or int(limit) >= _UNLIMITED:
            return None
        used = int((folder / used_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # not this version, or none that can be read
        return None
    return Cgroup(int(limit), int(limit) - used + int(stat.get(cache_name, 0)))
