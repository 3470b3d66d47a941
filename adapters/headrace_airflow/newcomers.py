"""What has come in since the last look, where nobody tells: runs that were asked for while the scheduler rests.

Stock looks once a second, and each look is a whole loop of the scheduler. Here a look is one small query.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

_EVERY_S: Final = 0.2


class Newcomers:
    """Looks every now and then.

    Args:
        newest: when the last of those came that still wait; ``None``: nobody waits.
        every_s: the time between two looks.
    """

    def __init__(self, newest: Callable[[], datetime | None], every_s: float = _EVERY_S) -> None:
        self._newest = newest
        self.every_s = every_s
        self._known: datetime | None = None
        self._looked_at = float("-inf")

    def have_come(self) -> bool:
        """Whether somebody has come since the last look; false if it is not time for another one.

        Those who have to wait on (a DAG runs no more of its runs at once) are told of once.
        """
        now = time.monotonic()
        if now - self._looked_at < self.every_s:
            return False
        self._looked_at = now
        known, self._known = self._known, self._newest()
        return self._known is not None and (known is None or self._known > known)
