"""The parts of the page in Airflow's UI, each by itself: gaps, what a user may see, its files, what loading costs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import headrace_plugins.page
from headrace.testing import wait_until
from headrace_airflow.observe import Daemon, Store
from headrace_airflow.store.report import RunUsage
from headrace_plugins.page import view
from headrace_plugins.page.gaps import gap_s, summary
from headrace_plugins.page.shared import Shared

STATIC = Path(headrace_plugins.page.__file__).parent / "static"
ENDS = {"early": 10.0, "late": 12.5, "unfinished": None}


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        (["early"], 3.0),
        (["early", "late"], 0.5),
        ([], None),
        (["early", "unfinished"], None),
        (["early", "not there yet"], None),
    ],
)
def test_a_gap_begins_with_the_end_of_the_last_task_before(upstream: list[str], expected: float | None) -> None:
    assert gap_s("success", True, 13.0, upstream, ENDS) == expected


def test_what_did_not_wait_has_no_gap() -> None:
    assert gap_s("running", True, 13.0, ["early"], ENDS) == 3.0
    assert gap_s("running", True, 12.0, ["late"], ENDS) is None  # by its trigger rule
    assert gap_s("running", False, 13.0, ["early"], ENDS) is None  # a second try
    assert gap_s("upstream_failed", True, 13.0, ["early"], ENDS) is None
    assert gap_s(None, True, 13.0, ["early"], ENDS) is None


def test_gaps_are_summed_up() -> None:
    assert summary([]) is None
    assert summary([0.3, 0.1, 0.2]) == {"count": 3, "median_s": 0.2, "longest_s": 0.3}


class TestShared:
    def test_however_many_ask_it_is_asked_once(self) -> None:
        asked: list[int] = []
        shared = Shared(lambda: asked.append(1) or len(asked), fresh_s=600)
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(shared.get())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (found, asked) == ([1] * 8, [1])

    def test_an_answer_gets_stale(self) -> None:
        asked: list[int] = []
        shared = Shared(lambda: asked.append(1) or len(asked), fresh_s=0)
        assert shared.get() == 1
        wait_until(lambda: shared.get() > 1, timeout_s=10)

    @pytest.mark.parametrize(("took_s", "good_for_s"), [(0.01, 1.0), (0.1, 2.0), (0.4, 8.0), (2.0, 10.0), (60.0, 10.0)])
    def test_an_answer_that_took_long_is_good_for_longer_but_never_for_long(
        self, took_s: float, good_for_s: float
    ) -> None:
        now_s = 100.0
        asked: list[float] = []

        def ask() -> float:
            nonlocal now_s
            now_s += took_s
            asked.append(now_s)
            return now_s

        shared = Shared(ask, clock=lambda: now_s)
        first = shared.get()
        now_s = first + good_for_s - 1e-6
        assert (shared.get(), asked) == (first, [first])
        now_s = first + good_for_s + 1e-6
        assert shared.get() > first

    def test_after_an_error_it_is_asked_again(self) -> None:
        answers = iter([lambda: 1 / 0, lambda: 2.0])
        shared = Shared(lambda: next(answers)(), fresh_s=600)
        with pytest.raises(ZeroDivisionError):
            shared.get()
        assert shared.get() == 2.0


def a_task(id: str, dag_id: str | None, name: str) -> dict[str, Any]:
    return {
        "id": id, "name": name, "dag_id": dag_id, "state": "running", "pid": 7, "supervisor_pid": 6, "since": 1.0,
        "started": 2.0, "waits_for": "", "cpus": 1.0, "memory_bytes": 0, "log_path": "private.log",
    }  # fmt: skip


def a_status() -> dict[str, Any]:
    zygote = {"pid": 9, "unfit": "", "sources": 2}
    return {
        "t": "status", "pid": 5, "since": 0.0, "drained": False, "schedulers": 1,
        "limits": {"cpus": 3.0, "memory_bytes": 8, "tasks": 32}, "memory": {"total_bytes": 8, "free_bytes": 4},
        "supervisors": [{"pid": 6, "task": "1"}],
        "tasks": [
            a_task("1", "mine", "mine.work r #1"), a_task("2", "other", "private.w r #1"), a_task("3", None, "private"),
        ],
        "zygotes": [
            {**zygote, "file": None},
            {**zygote, "file": ["dags", "", "mine.py"], "unfit": "it is odd"},
            {**zygote, "file": ["dags", "", "mine_too.py"], "sources": 0},
            {**zygote, "file": ["private", "", "mine.py"], "unfit": "private"},
        ],
        "later": "private",
    }  # fmt: skip


SIGHT = view.Sight({"mine"}, {("dags", "mine.py"), ("dags", "mine_too.py")})


class TestSight:
    def test_tasks_of_other_dags_are_counted_but_not_named(self) -> None:
        seen = view.daemon(Daemon(None, "running", a_status()), SIGHT)
        assert [task["name"] for task in seen["tasks"]] == ["mine.work r #1", None, None]
        assert [(z["state"], z["file"], z["unfit"]) for z in seen["zygotes"]] == [
            ("bare", None, ""),
            ("unfit", "dags mine.py", "it is odd"),
            ("parsing", "dags mine_too.py", ""),
            ("unfit", None, ""),
        ]

    def test_nothing_else_is_shown(self) -> None:
        assert "private" not in json.dumps(view.daemon(Daemon(None, "running", a_status()), SIGHT))

    def test_a_daemon_that_does_not_answer(self) -> None:
        assert view.daemon(Daemon("team", "silent", None), SIGHT) == {"team": "team", "state": "silent"}

    def test_the_store_shows_runs_of_readable_dags_alone(self) -> None:
        status = {"ok": True, "pid": 3, "objects": 2, "memory_bytes": 30, "url": "private", "reasons": ["private"]}
        runs = [RunUsage("mine", "r", objects=1, memory_bytes=10), RunUsage("private", "r", objects=1)]
        seen = view.store(Store("running", status, runs), SIGHT)
        assert seen is not None
        assert [(run["dag_id"], run["memory_bytes"]) for run in seen["runs"]] == [("mine", 10)]
        assert (seen["objects"], seen["memory_bytes"]) == (2, 30)
        assert "private" not in json.dumps(seen)
        assert view.store(None, SIGHT) is None


def test_no_text_is_ever_taken_for_markup_or_code() -> None:
    ways = ["innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(", "setTimeout(`"]
    sources = {path.name: path.read_text() for path in STATIC.glob("*.js")}
    assert len(sources) > 5
    assert [(name, way) for name, source in sources.items() for way in ways if way in source] == []


def test_loading_the_plugin_imports_nothing_else() -> None:
    source = (
        "import sys, airflow.plugins_manager\n"
        "before = set(sys.modules)\n"
        "import headrace_plugins.airflow_plugin\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['headrace_plugins', 'headrace_plugins.airflow_plugin']"
