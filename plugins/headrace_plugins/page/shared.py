"""An answer that many ask for is asked for once: however many look at the page, what is looked at has the same work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_SHARE: Final = 0.05
"""How much of the time is spent on asking, at most, as long as an answer takes less than half a second."""
_STALEST_S: Final = 10.0
"""The longest that an answer is given again because it took long: somebody who was silent may have recovered.

Observers wait at most 2 s for an answer: so even who needs all of that is asked for a sixth of the time at most.
"""


class Shared(Generic[T]):
    """Asks, and gives the answer to everybody for a while: the longer it took, the longer. Thread-safe.

    Args:
        ask: must end by itself; those who come meanwhile wait for it.
        fresh_s: how long an answer is good for at least.
        clock: in seconds, never set back.
    """

    def __init__(self, ask: Callable[[], T], fresh_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._fresh_s = fresh_s
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: list[T] = []
        self._stale_at = 0.0

    def get(self) -> T:
        """The answer. Raises what ``ask`` raises."""
        with self._lock:
            if not self._answers or self._clock() >= self._stale_at:
                began = self._clock()
                self._answers = [self._ask()]
                ended = self._clock()
                self._stale_at = ended + max(self._fresh_s, min((ended - began) / _SHARE, _STALEST_S))
            return self._answers[0]
