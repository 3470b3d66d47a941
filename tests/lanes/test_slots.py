"""What a batch that runs in a slot measures of its tasks."""

from __future__ import annotations

import time
from typing import Any

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


@pytest.mark.parametrize(("cores", "to_blame"), [(0.5, "the machine"), (1.0, "the GIL"), (1.6, "the machine")])
def test_who_waits_for_a_core_that_its_process_has_to_itself_waits_for_the_gil(
    cores: float, to_blame: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.perf_counter()
    queued_s = iter([0.0, TASK_S])
    monkeypatch.setattr(slots, "process_time", lambda: cores * (time.perf_counter() - began))
    monkeypatch.setattr(slots, "schedstat_s", lambda thread: (0.0, next(queued_s)))
    slots.queued_s()  # what came before the task is not its own
    batch = Batch(0, [0])
    assert run_batch(OneJob(time.sleep, TASK_S), batch, 0.0) is None
    (span,) = batch.spans
    assert (span.cpu_s > 0.9 * TASK_S) is (to_blame == "the machine")
