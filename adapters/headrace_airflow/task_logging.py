"""The logging of tasks, set up once in their zygote: a task need only say where to. Leans on Airflow's internals.

To set it up takes a task 9 ms, and touches a thousand pages of memory that it otherwise shares with the zygote. And it
has to be there when a file is parsed: a logger that is used then keeps for ever what it finds, and so does what the
file itself sets up. Others who know why a task has no log of its own write there, too (``tell``).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import datetime, timezone

_channel: int | None = None
"""In a zygote that has set it up, and in its forks: where all loggers write to."""


def prepare() -> None:
    """In a zygote, before it parses: sets it up, for now to its own output.

    Not where logs go elsewhere, too, by processors that are made for the purpose: they may have threads, and these do
    not survive a fork. Nor where it fails: each task shall say so in its log.
    """
    from airflow.sdk import log
    from airflow.sdk.execution_time import supervisor

    try:
        remote = log.load_remote_log_handler()
        if remote is not None and getattr(type(remote), "processors", None) != ():
            return
        channel = os.dup(2)
        supervisor._configure_logs_over_json_channel(channel)
    except Exception:
        return
    global _channel
    _channel = channel


def use() -> None:
    """In a task: what is there already is not set up again."""
    from airflow.sdk.execution_time import supervisor

    if _channel is not None:
        supervisor._configure_logs_over_json_channel = redirect


def redirect(descriptor: int) -> None:
    """In a fork: has what the zygote has set up write to a descriptor."""
    if _channel is not None:
        os.dup2(descriptor, _channel, inheritable=False)


def undo() -> None:
    """In what is no task: what is logged goes to its output, as before."""
    from airflow.logging_config import configure_logging
    from airflow.sdk.log import reset_logging

    if _channel is not None:
        redirect(2)
        reset_logging()
        configure_logging()


def tell(log_path: str | None, event: str, **details: str) -> None:
    """Puts what stock shows only in the scheduler's log into a task's, too. Never raises.

    Args:
        log_path: the task's log, below the folder of all logs; ``None``: it has none.
        event: what has happened.
        details: what else there is to know.
    """
    from airflow.sdk.log import init_log_file

    line = {
        "timestamp": datetime.now(tz=timezone.utc).isoformat(),
        "level": "error",
        "logger": "headrace",
        "event": event,
        **details,
    }
    with suppress(OSError):
        if log_path:
            with init_log_file(log_path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
