"""Sends a stage process the items of one of its inputs, a batch whenever it asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final

from headrace.errors import UnpicklableError
from headrace.stream.handle import Stream

_BATCH_BYTES: Final = 4 << 20


class Feeder:
    """One input; its thread starts with the first request.

    Args:
        stream: the input.
        number: of the call, and of the input in it.
        send: sends items (with the bytes that each takes) and, with the last of them, the end: True, or an exception.
        give_up: called if an item cannot be sent.
        feeding: called in the thread, with its number, when it begins and when it ends.
    """

    def __init__(
        self,
        stream: Stream,
        number: tuple[int, int],
        send: Callable[[tuple[int, int], list[tuple[Any, int]], Any], object],
        give_up: Callable[[], None],
        feeding: Callable[[int, bool], object],
    ) -> None:
        self._stream = stream
        self._number = number
        self._send = send
        self._give_up = give_up
        self._feeding = feeding
        self._asked: SimpleQueue[bool] = SimpleQueue()
        self._stopped = False
        self._thread: threading.Thread | None = None

    def ask(self) -> None:
        self._asked.put(True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="headrace-feeder", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._asked.put(False)
        self._stream.abandon()

    def _run(self) -> None:
        self._feeding(threading.get_ident(), True)
        try:
            batches = self._stream.batches(_BATCH_BYTES)
            end: Any = None
            while end is None and self._asked.get() and not self._stopped:
                batch: list[tuple[Any, int]] = []
                try:
                    batch = next(batches, [])
                    end = None if batch else True
                except BaseException as error:
                    end = error
                if not self._stopped:
                    self._send(self._number, batch, end)
                batch.clear()  # nobody here needs it while it waits for the next request
        except UnpicklableError:
            self._give_up()
        except OSError:
            pass  # the process is gone; whoever receives from it knows
        finally:
            self._feeding(threading.get_ident(), False)
            self._stream.close()
