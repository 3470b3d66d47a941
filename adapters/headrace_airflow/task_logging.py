"""The logging of tasks, set up once in their zygote: a task need only say where to. Leans on Airflow's internals.

To set it up takes a task 9 ms, and touches a thousand pages of memory that it otherwise shares with the zygote.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

_log_to: Callable[[int], None] | None = None
"""In a zygote that has set it up: has a task log to a descriptor."""


def prepare() -> None:
    """In a zygote: sets it up, for now to nowhere.

    Not where logs go elsewhere, too: who sends them may have threads, and these do not survive a fork. Nor where it
    fails: each task shall say so in its log.
    """
    from airflow.sdk import log
    from airflow.sdk.execution_time import supervisor

    hook = sys.excepthook
    try:
        if log.load_remote_log_handler() is not None:
            return
        channel = os.open(os.devnull, os.O_WRONLY)
        supervisor._configure_logs_over_json_channel(channel)
    except Exception:
        return
    hook_of_tasks, sys.excepthook = sys.excepthook, hook

    def log_to(descriptor: int) -> None:
        os.dup2(descriptor, channel, inheritable=False)
        sys.excepthook = hook_of_tasks

    global _log_to
    _log_to = log_to


def use() -> None:
    """In a task: what is there already is not set up again."""
    from airflow.sdk.execution_time import supervisor

    if _log_to is not None:
        supervisor._configure_logs_over_json_channel = _log_to


def undo() -> None:
    """In what is no task: what is logged goes to its output, as before."""
    from airflow.logging_config import configure_logging
    from airflow.sdk.log import reset_logging

    if _log_to is not None:
        reset_logging()
        configure_logging()
