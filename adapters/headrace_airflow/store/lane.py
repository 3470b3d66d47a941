"""The service's end of an I/O process: starts it at the first job, hears its answers, ends it when it hangs.

========  ======================================  ===========================================================
job       says                                    answered with
========  ======================================  ===========================================================
write     url, size, info; data or a descriptor   nothing more: the copy is there
erase     url                                     nothing more: there is no copy
read      url, id, size, place, writer            the descriptor of a file that begins with the image
sweep     ttl_s; keep: runs that are in use       nothing more: what is too old is gone
spill     size; data: what to write into it       the descriptor of a file without a name
========  ======================================  ===========================================================

Any answer may be ``error`` (text) and ``missing`` (whether that is because there is no copy) instead. Jobs are sent at
once, so that the process has them even if the service is killed the next moment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from headrace_airflow.store.settings import StoreSettings
from headrace_airflow.wire import Channel, Message, pair

Answer = Callable[[Message, list[int]], None]
"""Called with the answer and its descriptors, which are the callee's from then on."""

_MOST_SENT: Final = 256
"""Jobs at the process at a time: the kernel allows a user only so many descriptors in flight."""

_PATIENCE_S: Final = 120.0
_SLOWEST_BYTES_PER_S: Final = 2 << 20


class HelperLane:
    """One I/O process. Not thread-safe.

    Args:
        role: ``reader``, or a writer's name, which nobody else has.
        settings: handed to the process.
    """

    def __init__(self, role: str, settings: StoreSettings) -> None:
        self.role = role
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.channel: Channel | None = None
        self._sent: dict[int, tuple[Answer, float]] = {}
        """Job → who hears the answer, and how many seconds it may take."""
        self._waiting: deque[tuple[Message, int | None, Answer, float]] = deque()
        self._next = 1
        self._progress_s = 0.0

    def submit(self, message: Message, fd: int | None, answer: Answer, size_bytes: int = 0) -> None:
        """Has the process do a job; ``fd`` belongs to the lane from now on."""
        self._waiting.append((message, fd, answer, _PATIENCE_S + size_bytes / _SLOWEST_BYTES_PER_S))
        self._send_waiting()

    @property
    def pid(self) -> int:
        """Of the process; 0: there is none."""
        return 0 if self._process is None else self._process.pid

    @property
    def busy(self) -> int:
        """How many jobs are not answered yet."""
        return len(self._sent) + len(self._waiting)

    def handle(self) -> None:
        """The channel is readable or writable."""
        if self.channel is None:
            return
        self.channel.flush()
        for message, fds in self.channel.receive():
            answer, _ = self._sent.pop(message["job"])
            self._progress_s = time.monotonic()
            answer(message, fds)
        if self.channel is not None and self.channel.closed:
            self._lost("the I/O process ended")
        self._send_waiting()

    def look(self) -> None:
        """Ends a process that has made no progress for too long: a hung network file system, for example."""
        if self._sent and time.monotonic() - self._progress_s > next(iter(self._sent.values()))[1]:
            self._lost("storage did not answer in time")

    def close(self) -> None:
        """Lets the process end: it finishes what it was given, unless nothing is left to do."""
        if self.channel is not None:
            self.channel.drain(5.0)
            self.channel.close()
            self.channel = None
        if self._process is not None:
            # With no job left it ends at once; with some it may take long, and must not be waited for.
            if not self._sent:
                self._process.wait()
            self._process.returncode = self._process.returncode or 0
            self._process = None

    def _send_waiting(self) -> None:
        while self._waiting and len(self._sent) < _MOST_SENT:
            message, fd, answer, patience_s = self._waiting.popleft()
            number, self._next = self._next, self._next + 1
            try:
                channel = self._start() if self.channel is None else self.channel
                channel.send({"job": number, **message}, [fd] if fd is not None else [])
            except OSError as error:  # no descriptor, or no process, is left
                answer({"error": str(error), "missing": False}, [])
            else:
                if not self._sent:
                    self._progress_s = time.monotonic()
                self._sent[number] = (answer, patience_s)
            if fd is not None:
                os.close(fd)

    def _start(self) -> Channel:
        channel, theirs = pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "headrace_airflow.store.helper", str(theirs.fileno()), self.role],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write(self._settings.to_json().encode())  # far less than a pipe takes at once
        self.channel = channel
        return channel

    def _lost(self, reason: str) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        if self._process is not None:
            self._process.kill()  # the service still has what it was given, and tries again
            self._process.wait()
            reason = f"{reason} (exit code {self._process.returncode})"
            self._process = None
        sent, self._sent = self._sent, {}
        for answer, _ in sent.values():
            answer({"error": reason, "missing": False}, [])


def error_of(message: Message) -> str | None:
    """What went wrong in a job, if anything did."""
    text: Any = message.get("error")
    return None if text is None else str(text)
