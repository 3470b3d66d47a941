"""An answer that many ask for is asked for once: however many look at the page, what is looked at has the same work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_SHARE: Final = 0.05
"""How much of the time is spent on asking, at most."""


class Shared(Generic[T]):
    """Asks, and gives the answer to everybody for a while: the longer it took, the longer. Thread-safe.

    Args:
        ask: must end by itself; those who come meanwhile wait for it.
        fresh_s: how long an answer is good for at least.
    """

    def __init__(self, ask: Callable[[], T], fresh_s: float = 1.0) -> None:
        self._ask = ask
        self._fresh_s = fresh_s
        self._lock = threading.Lock()
        self._answers: list[T] = []
        self._stale_at = 0.0

    def get(self) -> T:
        """The answer. Raises what ``ask`` raises."""
        with self._lock:
            if not self._answers or time.monotonic() >= self._stale_at:
                began = time.monotonic()
                self._answers = [self._ask()]
                took_s = time.monotonic() - began
                self._stale_at = time.monotonic() + max(self._fresh_s, took_s / _SHARE)
            return self._answers[0]
