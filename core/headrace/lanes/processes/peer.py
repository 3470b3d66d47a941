"""A worker as the owner sees it: plain state, shared by the threads that send and the io thread.

Who may touch what: ``outbox`` is appended to by anybody; what it leads to is done by the one thread that holds
``sending``. The connection is set once by the io thread, and closed by it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import Any, Final, TypeAlias

from headrace.companions import States
from headrace.lanes.processes.launcher import Launched
from headrace.obituary import describe_exit

Order: TypeAlias = tuple[Any, ...]
"""What is still to be said to a worker: begins with a code of wire.py; ``RUN`` holds ids of tasks, not records."""

SENT: Final = False
HELD: Final = True

NEVER: Final = float("inf")
NOW: Final = 0.0

_WORD: Final = 8


class Peer:
    """One worker: its connection, what is still to be told to it, and what it is known to hold."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.outbox: deque[Order] = deque()
        self.sending = threading.Lock()
        self.at: dict[int, bool] = {}
        """Task → ``SENT`` (it is to run there) or ``HELD`` (its value is there)."""
        self.functions: set[int] = set()
        self.oldest_function = 0
        self.arenas: set[int] = set()
        self.told: tuple[list[str], str | None] | None = None
        """``sys.path`` and working directory, as the worker knows them."""
        self.environment: dict[bytes, bytes] = {}
        """The owner's, as the worker knows it."""
        self.reloads = 0
        """How many of the owner's it has been told of."""
        self.states: States = {}
        """Of the owner's companions, as the worker knows them."""
        self.variant = -1
        """Their number, as :class:`Functions` knows it."""
        self.started = False
        self.stopping = False
        self.dead = False
        self.kill_at_s = NEVER
        self.rss_bytes = 0
        self.unheard = ""
        """Why the owner could not read what the worker said, if so; it is killed then."""
        self.link: Launched | None = None
        self._ending = threading.Lock()

    def kill(self) -> None:
        """Kills the worker and what its tasks have started, now. Thread-safe."""
        with self._ending:
            # Its number is still the worker's: whoever reaps it holds the lock and sets ``dead``.
            if self.link is not None and not self.dead:
                self.link.process.kill()

    def reap(self) -> tuple[str, int]:
        """Collects a worker that has ended, and kills what its tasks have left behind.

        Returns:
            How it ended, as text, and its resident memory before that.
        """
        assert self.link is not None
        process = self.link.process
        with self._ending:
            process.kill()
            self.dead = True
            ended = process.collect()
        if ended is None:
            return "gone; somebody else has collected its exit code", self.rss_bytes
        code, peak_bytes = ended
        # A new process inherits the peak of the one that started it; only a higher one is its own.
        if peak_bytes > _own_peak_bytes():
            self.rss_bytes = peak_bytes
        return describe_exit(code), self.rss_bytes

    def blamed_task(self) -> int | None:
        """The task that the worker is at, by its page, or was at when it died; of one that could not be heard, the
        first whose end it has not told."""
        if self.unheard:
            return next((task for task, state in self.at.items() if state is SENT), None)
        running, publishing = self._page()
        # What the io thread pickles is rarer and quicker, so if it was at that, that was it.
        if publishing:
            return publishing - 1
        if running and self.at.get(running - 1) is SENT:
            return running - 1
        return None

    def _page(self) -> tuple[int, int]:
        """What the worker runs and what it publishes: a task's id + 1 each, or 0."""
        link = self.link
        if link is None:
            return 0, 0
        page = link.page
        return int.from_bytes(page[:_WORD], "little"), int.from_bytes(page[_WORD : 2 * _WORD], "little")

    def sample_memory(self) -> None:
        """Notes the worker's resident memory."""
        if self.link is None:
            return
        try:
            with open(f"/proc/{self.link.process.pid}/statm", encoding="ascii") as file:
                self.rss_bytes = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") or self.rss_bytes
        except (OSError, IndexError):
            pass

    def close(self) -> None:
        """Closes the connection of a worker that was reaped."""
        if self.link is not None:
            self.link.channel.close()
            self.link.page.close()
            for fd in self.link.life_fds:
                os.close(fd)
            os.close(self.link.process.pid_fd)
            self.link = None

    def forget_in_child(self) -> None:
        """In a forked child of the owner: lets go of the connection without a word."""
        if self.link is not None:
            self.link.process.forget()
            self.close()


def _own_peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
