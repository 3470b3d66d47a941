"""What a batch that runs in a slot measures of its tasks."""

from __future__ import annotations

import time
from typing import Any

import pytest

from headrace.lanes import slots
from headrace.lanes.slots import Batch, run_batch


class OneJob:
    """A job of a single task."""

    base, streams = 0, False

    def __init__(self, fn: Any, *args: Any) -> None:
        self.calls = [(fn, args, None, ())]
        self.values: dict[int, Any] = {}
        self.load: Any = None  # it has no inputs
        self.stage: Any = None  # nor streams


def test_what_a_thread_waited_for_a_core_before_is_no_matter_of_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "schedstat_s", lambda thread: (0.0, 5.0))
    monkeypatch.setattr(slots, "_local", type("Fresh", (), {})())
    batch = Batch(0, [0])
    assert run_batch(OneJob(time.sleep, 0.05), batch, 0.0) is None
    (span,) = batch.spans
    assert span.queued_s == 0.0
    assert 0.0 <= span.cpu_s < 0.04 < 0.05 <= span.wall_s
