"""Now and then, what was deleted through the REST API is given up: that does not call the XCom backend.

It is the work of a process of its own: looking through the rows of all runs that have values in the store takes a
while, and the scheduler must not wait.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-m", "airflow", "headrace", "store", "--collect")


class Collector:
    """Starts the process when it is due, and never a second one beside it.

    Args:
        every_s: how often; 0: never.
        log_file: what it has to say goes here.
        command: the process.
    """

    def __init__(self, every_s: float, log_file: Path, command: Sequence[str] = COMMAND) -> None:
        self._every_s, self._log_file, self._command = every_s, log_file, command
        self._due_s = time.monotonic() + every_s
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> None:
        """Starts the process if it is due; to be called now and then. Does not wait for it, and never raises."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = None
        if self._every_s and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + self._every_s
            try:
                with self._log_file.open("ab") as log:
                    self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            except OSError as error:  # no process or no disk is left: the scheduler goes on, and the next time may do
                _log.warning("deleted XComs are not looked for now: %s", error)

    def close(self) -> None:
        """Ends the process; the next one does what it has not done."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
