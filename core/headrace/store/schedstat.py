"""What the kernel knows of a thread's time that no clock of Python's tells."""

from __future__ import annotations


def schedstat_s(thread: str) -> tuple[float, float]:
    """For how many seconds a thread has run, and for how many it stood in the run queue: ready, but with no core free.

    Args:
        thread: its directory below ``/proc``: ``thread-self``, or ``self/task/<its native id>``.

    Returns:
        Zeros if it has ended, or if the kernel keeps no such figures.
    """
    try:
        with open(f"/proc/{thread}/schedstat", "rb") as file:
            running, queued, _ = file.read().split()
        return int(running) * 1e-9, int(queued) * 1e-9
    except (OSError, ValueError):
        return 0.0, 0.0
