"""The cgroups that limit this process, in both versions: its own and those above it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")


def folders(controller: str) -> list[Path]:
    """Where the files of a controller (``cpu``, ``memory``) may be, innermost first.

    Inside of a container the outermost that it sees is its own, whatever path it is told; so that is always among them.
    """
    found = []
    for line in _lines(_MEMBERSHIP):
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):  # version 2 names none
            inner = Path(path.lstrip("/"))
            found += [_ROOT / controllers / part for part in (inner, *inner.parents)]
    return list(dict.fromkeys([*found, _ROOT, _ROOT / controller]))


def cores() -> float:
    """How many cores' worth of time the tightest CPU quota allows; infinite without one."""
    return min([float("inf"), *(_quota(folder) for folder in folders("cpu"))])


def _quota(folder: Path) -> float:
    written = _words(folder / "cpu.max") or [
        *_words(folder / "cpu.cfs_quota_us"),
        *_words(folder / "cpu.cfs_period_us"),
    ]
    try:
        quota, period = map(int, written)  # microseconds
        return quota / period if quota > 0 else float("inf")
    except (ValueError, ZeroDivisionError):  # "max", or not what a kernel writes
        return float("inf")


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not this version, or none that may be read
        return []
