"""Amounts of memory: how they are written in settings, and how much of it there is. Imports no Airflow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "kb": 10**3, "m": 1 << 20, "mib": 1 << 20, "mb": 10**6,
                 "g": 1 << 30, "gib": 1 << 30, "gb": 10**9, "t": 1 << 40, "tib": 1 << 40, "tb": 10**12}  # fmt: skip
_UNLIMITED: Final = 1 << 60
"""Version 1 of cgroups writes a number like this where there is no limit."""


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


def memory_limit_bytes() -> int:
    """The machine's memory, or less where a cgroup of this process has a limit."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([limit, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    found = []
    for folder in _cgroup_folders():
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                text = (folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < _UNLIMITED:
                found.append(int(text))
    return found


def _cgroup_folders() -> list[Path]:
    """Those of this process and of everything above it, in both versions; a container sees only the last."""
    root = Path("/sys/fs/cgroup")
    folders = [root, root / "memory"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            inner = Path(path.lstrip("/"))
            folders += [root / controllers / part for part in (inner, *inner.parents)]
    return folders
