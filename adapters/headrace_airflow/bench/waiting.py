"""Waiting for conditions, and ports that are free."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], what: str, timeout_s: float, *, every_s: float = 0.05, detail: Callable[[], str] = str
) -> T:
    """Looks until a condition gives something true, and returns that.

    Args:
        condition: may raise to end the wait.
        what: the condition in words, for the error.
        timeout_s: how long, in seconds.
        every_s: pause between looks.
        detail: what to add to the error.

    Raises:
        TimeoutError: it did not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}\n{detail()}".rstrip())
        time.sleep(every_s)
    return value


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listened on a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
