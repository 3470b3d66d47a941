"""A stage that goes on until it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator


class Endless:
    """A stage that says when it begins and when it has been stopped; without an input, it counts."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.stopped = threading.Event()

    def __call__(self, items: Iterable[int] = ()) -> Iterator[int]:
        try:
            self.began.set()
            yield from items
            number = 0
            while True:
                yield number
                number += 1
        finally:
            self.stopped.set()
