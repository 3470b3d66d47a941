"""Stages in processes of their own: the same results, and nothing hangs or stays, whoever dies."""

from __future__ import annotations

import copyreg
import os
import random
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from moved_stages import (
    OnlyHere,
    arrays,
    count_and_hide,
    count_of,
    die,
    die_once,
    fail_at,
    fail_only_here,
    hashes,
    note_end,
    only_here,
    pid_of,
    pids_of,
    scaled,
    slowly,
    total_of,
    with_lock,
    with_pid,
)
from random_graphs import one_by_one, plain, random_graph

from headrace.errors import WorkerDied
from headrace.graph import Graph
from headrace.runtime import Runtime
from headrace.shell import moving
from headrace.stream.source import Source
from headrace.testing import wait_until

TIMEOUT_S = 60.0


def _move_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "holds_gil", lambda sources, live: True)
    monkeypatch.setattr(moving.Moving, "_process", lambda self, sources: self.another(False))


@pytest.fixture
def rt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """A runtime all of whose stages move that can."""
    _move_all(monkeypatch)
    with Runtime(lane="auto", num_workers=2, check=True) as runtime:
        yield runtime


def test_a_generator_and_its_reader_each_have_a_process(rt: Runtime) -> None:
    total, makers, reader = rt.submit(pids_of, rt.submit(with_pid, rt.submit(slowly, 100))).result(TIMEOUT_S)
    assert total == sum(range(100))
    assert len(makers) == 1
    assert len({*makers, reader, os.getpid()}) == 3


def test_a_stage_whose_process_dies_begins_again(rt: Runtime, tmp_path: Path) -> None:
    stage = rt.submit(die_once, rt.submit(slowly, 100), tmp_path / "died", 50)
    assert list(stage.result(TIMEOUT_S)) == list(range(100))
    assert (tmp_path / "died").exists()


def test_a_stage_that_keeps_dying_is_given_up(rt: Runtime) -> None:
    with pytest.raises(WorkerDied, match=r"after it took down 3 worker process.*exit code 3"):
        rt.submit(die, rt.submit(slowly, 100)).result(TIMEOUT_S)


def test_failures_come_where_they_happened(rt: Runtime) -> None:
    stage = rt.submit(fail_at, rt.submit(slowly, 60), 55).result(TIMEOUT_S)
    assert list(islice(stage, 55)) == list(range(55))
    with pytest.raises(KeyError, match="55"):
        len(stage)
    after = rt.submit(list, rt.submit(fail_at, rt.submit(slowly, 60), 50))
    with pytest.raises(KeyError, match="50"):
        after.result(TIMEOUT_S)


def test_a_stage_that_nobody_wants_closes_its_generator(rt: Runtime, tmp_path: Path) -> None:
    stage = rt.submit(note_end, rt.submit(slowly, 1000), tmp_path / "ended").result(TIMEOUT_S)
    assert list(islice(stage, 3)) == [0, 1, 2]
    stage.close()
    del stage
    wait_until((tmp_path / "ended").exists, "the generator's end", TIMEOUT_S)


def test_what_cannot_be_pickled_runs_here(rt: Runtime) -> None:
    items = rt.submit(with_lock, rt.submit(slowly, 50)).result(TIMEOUT_S)
    assert [item for item, _ in items] == list(range(50))
    lock = threading.Lock()
    assert rt.submit(lambda items: (sum(items), lock.locked()), rt.submit(slowly, 50)).result(TIMEOUT_S) == (
        1225,
        False,
    )
    unsendable = rt.submit(lambda items: len(list(items)), rt.submit(with_lock, rt.submit(slowly, 50)))
    assert unsendable.result(TIMEOUT_S) == 50


def test_what_cannot_be_unpickled_runs_here(rt: Runtime) -> None:
    made = rt.submit(only_here, rt.submit(slowly, 50)).result(TIMEOUT_S)
    assert [item.args for item in made] == [(number,) for number in range(50)]


@pytest.mark.parametrize("with_tblib", [False, True])
def test_what_cannot_be_unpickled_is_read_here(with_tblib: bool, rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_tblib:  # as when distributed was imported, which has tblib pickle all exceptions that there are
        tblib = pytest.importorskip("tblib.pickling_support")
        monkeypatch.setitem(copyreg.dispatch_table, OnlyHere, tblib.pickle_exception)
    for count in (count_of, count_and_hide):
        made = rt.submit(only_here, rt.submit(slowly, 50))
        assert rt.submit(count, made).result(TIMEOUT_S) == (50, os.getpid())


def test_a_failure_that_cannot_be_pickled_moves(rt: Runtime) -> None:
    with pytest.raises(OnlyHere, match="5"):
        list(rt.submit(with_pid, rt.submit(fail_only_here, rt.submit(slowly, 50))).result(TIMEOUT_S))


def test_what_would_be_another_value_elsewhere_runs_here(rt: Runtime) -> None:
    assert rt.submit(hashes, rt.submit(slowly, 5)).result(TIMEOUT_S) == [hash(str(item)) for item in range(5)]


def test_what_is_pinned_runs_here(rt: Runtime) -> None:
    calls: list[Any] = [
        (slowly, (20,), None, ()),
        (pid_of, (None,), None, ((0, 0),)),
        (pid_of, (None,), None, ((0, 0),)),
    ]
    graph = Graph(["slowly", "here", "there"], calls, [(), (0,), (0,)], ["slowly", "here", "there"], [1, 2], pinned={1})
    here, there = rt.run(graph)
    assert here == os.getpid() != there


def test_large_items(rt: Runtime) -> None:
    total = rt.submit(total_of, rt.submit(scaled, rt.submit(arrays, 60)))
    assert total.result(TIMEOUT_S) == 2 * sum(range(60))


def test_what_is_made_faster_than_it_is_sent_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source.of_items("items", list(range(1000)), None)
    source.flow.over = False
    monkeypatch.setattr(moving, "_computes", lambda source: True)
    monkeypatch.setattr(moving, "LATE_S", -1.0)  # whoever sleeps wakes late
    for busy_s, moves in ((0.001, False), (0.1, True)):
        monkeypatch.setattr(source, "used", lambda busy_s=busy_s: (1.0, busy_s))
        assert moving.holds_gil([source], [source]) is moves


@pytest.mark.timeout(100)
@pytest.mark.parametrize("first", range(0, 40, 20))
def test_random_graphs(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _move_all(monkeypatch)
    with Runtime(lane="auto", num_workers=2, stream_buffer_bytes=(100, 1 << 20)[first // 20], check=True) as rt:
        for seed in range(first, first + 20):
            graph = random_graph(random.Random(seed))
            assert [plain(value) for value in rt.run(graph)] == one_by_one(graph), f"seed {seed}"
