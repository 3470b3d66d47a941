"""Hides the asyncio event loop of the calling thread while it runs tasks.

A notebook's cell and a web handler call a scheduler from within a running event loop. A task that calls
``asyncio.run`` would fail there, in the thread of that loop, though it works in any thread of a pool: for as long as
the caller runs tasks, its thread says that it has no loop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def hide_event_loop() -> Callable[[], None]:
    """Has the current thread say that it runs no event loop. Returns what puts the loop back, in the same thread."""
    asyncio: Any = sys.modules.get("asyncio")
    events: Any = getattr(asyncio, "events", None)  # not there yet while another thread imports asyncio
    loop = events._get_running_loop() if hasattr(events, "_get_running_loop") else None
    if loop is None:
        return _nothing
    swap_task = getattr(getattr(asyncio, "tasks", None), "_swap_current_task", _swap_nothing)
    # From Python 3.14 on a thread has one current task, and refuses to enter that of another loop.
    task = swap_task(loop, None)
    events._set_running_loop(None)

    def put_back() -> None:
        events._set_running_loop(loop)
        swap_task(loop, task)

    return put_back


def _swap_nothing(loop: Any, task: Any) -> None: ...


def _nothing() -> None: ...
