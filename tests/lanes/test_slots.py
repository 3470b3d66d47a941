"""What a batch that runs in a slot measures of its tasks."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pytest

from headrace.lanes import slots
from headrace.lanes.slots import Batch, run_batch

TASK_S = 0.05


class OneJob:
    """A job of a single task."""

    base, streams = 0, False

    def __init__(self, fn: Any, *args: Any) -> None:
        self.calls = [(fn, args, None, ())]
        self.values: dict[int, Any] = {}
        self.load: Any = None  # it has no inputs
        self.stage: Any = None  # nor streams


class Usage(NamedTuple):
    ru_nvcsw: int


@pytest.mark.parametrize(
    ("asleep", "to_blame"), [(0, "the machine"), (2, "the machine"), (20, "the machine"), (180, "the GIL")]
)
def test_who_sleeps_often_waits_for_the_gil_and_who_stands_in_the_run_queue_for_a_core(
    asleep: int, to_blame: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the kernel said of numpy's tasks on a busy machine, and of pandas' beside one another."""
    queued_s = iter([0.0, TASK_S])
    switches = iter([Usage(7), Usage(7 + asleep)])
    monkeypatch.setattr(slots, "schedstat_s", lambda thread: (0.0, next(queued_s)))
    monkeypatch.setattr(slots, "getrusage", lambda who: next(switches))
    slots.queued_s()  # what came before the task is not its own
    batch = Batch(0, [0])
    assert run_batch(OneJob(time.sleep, TASK_S), batch, 0.0) is None
    (span,) = batch.spans
    assert (span.cpu_s > 0.9 * TASK_S) is (to_blame == "the machine")
    assert span.width * span.wall_s > span.cpu_s - 0.001
