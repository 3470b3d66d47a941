"""What the end of a Runtime does to work that comes at the same moment, and what it must not do."""

from __future__ import annotations

import threading

import pytest

from headrace import testing
from headrace.runtime import Runtime

TIMEOUT_S = 30.0


def test_a_task_that_cannot_wait_for_the_end_cancels_nothing() -> None:
    submitted = threading.Event()
    with Runtime(lane="threads", num_workers=1) as rt:

        def shut_down() -> int:
            submitted.wait(TIMEOUT_S)
            with pytest.raises(RuntimeError, match="wait=False"):
                rt.shutdown(cancel_futures=True)
            return 1

        after = rt.submit(testing.inc, rt.submit(shut_down))
        submitted.set()
        assert after.result(TIMEOUT_S) == 2
        assert rt.submit(testing.inc, 1).result(TIMEOUT_S) == 2
