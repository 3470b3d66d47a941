"""What ``headrace status`` shows when something is wrong with what it should show."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from headrace import testing
from headrace.cli import main
from headrace.graph import Graph
from headrace.observe.status import read_status
from headrace.runtime import Runtime


def test_a_status_that_cannot_be_told_is_said_and_the_next_one_is_told(capsys: Any, tmp_path: Path) -> None:
    def mine() -> list[dict[str, Any]]:
        return [state for state in read_status() if state["pid"] == os.getpid()]

    class Nameless:
        def __str__(self) -> str:
            raise ValueError("no name")

    with Runtime(lane="threads", num_workers=1) as rt:
        graph = Graph([Nameless()], [(testing.hold, (tmp_path,), None, ())], [()], ["f"], [0])
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(rt.run, graph)
            testing.wait_until(lambda: any("error" in state for state in mine()), "an error")
            main(["status", str(os.getpid())])
            assert "ValueError: no name" in capsys.readouterr().out
            testing.let_go(tmp_path)
            running.result()
        rt.run(Graph(["a"], [(testing.inc, (1,), None, ())], [()], ["f"], [0]))
        testing.wait_until(lambda: any("jobs" in state for state in mine()), "the status")
