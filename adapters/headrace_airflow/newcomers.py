"""What has come in since the last look, where nobody tells: runs that were asked for while the scheduler rests.

Stock looks once a second, and each look is a whole loop of the scheduler. Here a look is one small query.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

_EVERY_S: Final = 0.2
_REST: Final = 9.0
"""For so many times as long as a look has taken there is no other one: a tenth of the time is spent on it."""


class Newcomers:
    """Looks every now and then.

    Args:
        newest: when the last of those came that still wait; ``None``: nobody waits.
        every_s: the time between two looks. Longer where a look takes long: a database that is slow has other things
            to do, and so has the scheduler.
    """

    def __init__(self, newest: Callable[[], datetime | None], every_s: float = _EVERY_S) -> None:
        self._newest = newest
        self.every_s = every_s
        self._known: datetime | None = None
        self._due = float("-inf")

    def have_come(self) -> bool:
        """Whether somebody has come since the last look; false if it is not time for another one.

        Those who have to wait on (a DAG runs no more of its runs at once) are told of once.
        """
        began = time.monotonic()
        if began < self._due:
            return False
        known, self._known = self._known, self._newest()
        done = time.monotonic()
        self._due = done + max(self.every_s, _REST * (done - began))
        return self._known is not None and (known is None or self._known > known)
