"""Stages whose processes are killed: who begins again, who goes on where it was, and what they are given twice."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import resumed_stages as stages

import headrace
from headrace.config import LANES
from headrace.errors import WorkerDied
from headrace.runtime import Runtime
from headrace.shell import moving
from headrace.stream.resuming import is_resumable

TIMEOUT_S = 60.0
MANY = 3000
"""More than is on its way at once."""


@pytest.fixture
def processes() -> Iterator[Runtime]:
    with Runtime(lane="processes", num_workers=2, check=True) as runtime:
        yield runtime


def makers(found: list[Any]) -> set[int]:
    return {maker for _, maker, *_ in found}


# ---- the producer dies, while its readers have read some of what it made


def test_readers_begin_again(processes: Runtime, tmp_path: Path) -> None:
    made = processes.submit(stages.numbers, MANY, tmp_path, MANY - 1, 0, "told")
    found = processes.submit(stages.gather, made, tmp_path, 5).result(TIMEOUT_S)
    assert [number for number, _ in found] == list(range(MANY))
    assert len(makers(found)) == 1  # nothing of the first attempt is left
    noted = stages.noted(tmp_path / "gathered")
    assert noted[-MANY:] == list(range(MANY))
    assert 6 <= len(noted) - MANY < MANY


def test_a_resumable_reader_goes_on(processes: Runtime, tmp_path: Path) -> None:
    made = processes.submit(stages.numbers, MANY, tmp_path, MANY - 1, 0, "told")
    found = processes.submit(stages.resumable_gather, made, tmp_path, 5).result(TIMEOUT_S)
    assert [number for number, _ in found] == list(range(MANY))
    assert len(makers(found)) == 2
    assert stages.noted(tmp_path / "gathered") == list(range(MANY))


def test_readers_of_readers_begin_again(processes: Runtime, tmp_path: Path) -> None:
    made = processes.submit(stages.numbers, MANY, tmp_path, MANY - 1, 0, "told")
    passed = processes.submit(stages.passed_on, made, tmp_path)
    found = processes.submit(stages.gather, passed, tmp_path, 5).result(TIMEOUT_S)
    assert [number for number, *_ in found] == list(range(MANY))
    assert len(makers(found)) == 1
    assert len(stages.noted(tmp_path / "gathered")) > MANY
    assert len(stages.noted(tmp_path / "passed")) > MANY


def test_readers_of_a_resumable_reader_notice_nothing(processes: Runtime, tmp_path: Path) -> None:
    made = processes.submit(stages.numbers, MANY, tmp_path, MANY - 1, 0, "told")
    passed = processes.submit(headrace.resumable(functools.partial(stages.passed_on, folder=tmp_path)), made)
    found = processes.submit(stages.gather, passed, tmp_path, 5).result(TIMEOUT_S)
    assert [number for number, *_ in found] == list(range(MANY))
    assert stages.noted(tmp_path / "gathered") == stages.noted(tmp_path / "passed") == list(range(MANY))


def test_who_hides_that_it_has_to_begin_again_does_it_all_the_same(processes: Runtime, tmp_path: Path) -> None:
    made = processes.submit(stages.numbers, MANY, tmp_path, MANY - 1, 0, "told")
    found = processes.submit(stages.swallowing, made, tmp_path, 5).result(TIMEOUT_S)
    assert ([number for number, _ in found], len(makers(found))) == (list(range(MANY)), 1)
    assert (tmp_path / "swallowed").exists()


def test_readers_in_this_process_begin_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In lane ``auto``: only the middle one of three stages is in a process."""

    class Here(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("stays here")

    def gather(items: Iterable[Any], _: Here) -> list[Any]:
        return stages.gather(items, tmp_path, 5)

    def passed_on(items: Iterable[Any], _: Here) -> Iterator[Any]:
        yield from items

    monkeypatch.setattr(moving, "holds_gil", lambda sources, live: True)
    monkeypatch.setattr(moving.Moving, "_process", lambda self, sources: self.another(False))
    with Runtime(lane="auto", num_workers=2, check=True) as rt:
        go = rt.submit(stages.endless, tmp_path)
        made = rt.submit(stages.numbers_beside, go, MANY, tmp_path)
        found = rt.submit(gather, rt.submit(passed_on, made, Here()), Here()).result(TIMEOUT_S)
        assert ([number for number, _ in found], len(makers(found))) == (list(range(MANY)), 1)
    noted = stages.noted(tmp_path / "gathered")
    assert noted[-MANY:] == list(range(MANY))
    assert len(noted) > MANY


def test_whoever_is_no_task_goes_on(processes: Runtime, tmp_path: Path) -> None:
    made = processes.submit(stages.numbers, MANY, tmp_path, MANY - 1, 0, "told").result(TIMEOUT_S)
    found = []
    for number, _ in made:
        found.append(number)
        (tmp_path / "told").touch()
    assert found == list(range(MANY))
    assert [number for number, _ in made] == found
    assert len(made) == MANY


# ---- a stage dies between what it reads and those who read it


@pytest.mark.parametrize("times", [stages.once, stages.unevenly, stages.never])
@pytest.mark.parametrize("dies_at", [0, 1, 2, 1234, MANY - 1, -2])
def test_a_resumable_stage_goes_on_where_it_was(
    processes: Runtime, tmp_path: Path, times: Callable[[int], int], dies_at: int
) -> None:
    made = processes.submit(stages.numbers, MANY, tmp_path)
    spread = processes.submit(stages.resumable_spread, made, tmp_path, dies_at, times)
    assert processes.submit(list, spread).result(TIMEOUT_S) == stages.spread_of(MANY, times)
    assert (tmp_path / "spread-died").exists()
    noted = stages.noted(tmp_path / "spread")
    assert sorted(set(noted)) == list(range(MANY))
    # Again come the one that it was at, and those whose items had not left the process.
    assert len(noted) - MANY <= MANY // 2


def test_what_was_finished_is_not_given_again(processes: Runtime, tmp_path: Path) -> None:
    """Of large items each is sent by itself, and the next one not before."""
    made = processes.submit(stages.numbers, 40, tmp_path, -1, 1_000_000)
    doubled = processes.submit(stages.doubled, made, tmp_path, 30)
    assert [int(item[-1]) for item in doubled.result(TIMEOUT_S)] == list(range(0, 80, 2))
    again = len(stages.noted(tmp_path / "doubled")) - 40
    assert 1 <= again <= 10


def test_a_stage_that_is_not_resumable_begins_again(processes: Runtime, tmp_path: Path) -> None:
    made = processes.submit(stages.numbers, MANY, tmp_path)
    spread = processes.submit(stages.spread, made, tmp_path, MANY - 1, stages.once)
    assert processes.submit(list, spread).result(TIMEOUT_S) == stages.spread_of(MANY, stages.once)
    noted = stages.noted(tmp_path / "spread")
    assert noted == [*range(MANY), *range(MANY)]


def test_of_several_streams_all_are_read_again(processes: Runtime, tmp_path: Path) -> None:
    both = [processes.submit(stages.numbers, 500, tmp_path) for _ in range(2)]
    paired = processes.submit(stages.paired, *both, tmp_path, 400)
    assert processes.submit(list, paired).result(TIMEOUT_S) == [(number, number) for number in range(500)]
    assert stages.noted(tmp_path / "paired") == [*range(401), *range(500)]


def test_both_ends_die(processes: Runtime, tmp_path: Path) -> None:
    made = processes.submit(stages.numbers, MANY, tmp_path, 2000)
    spread = processes.submit(stages.resumable_spread, made, tmp_path, 1000, stages.unevenly)
    assert processes.submit(list, spread).result(TIMEOUT_S) == stages.spread_of(MANY, stages.unevenly)


def test_one_that_keeps_dying_is_given_up(processes: Runtime, tmp_path: Path) -> None:
    stage = processes.submit(stages.always_dies, processes.submit(stages.numbers, 100, tmp_path))
    with pytest.raises(WorkerDied, match="exit code 3"):
        processes.submit(list, stage).result(TIMEOUT_S)


# ---- the declaration


def test_what_can_be_declared() -> None:
    scaler = stages.Scaler(3)
    assert is_resumable(stages.doubled)
    assert is_resumable(functools.partial(functools.partial(stages.doubled, folder=None), dies_at=1))
    assert is_resumable(scaler.scale)
    assert is_resumable(headrace.resumable(functools.partial(stages.spread, times=stages.once)))
    assert headrace.resumable(scaler.plain)([1]) is not None
    assert is_resumable(stages.Scaler(4).plain)  # the function of all of them was declared
    assert is_resumable(headrace.resumable(stages.Counter()))
    assert not any(map(is_resumable, (stages.spread, stages.Counter(), sum, functools.partial(stages.spread), None)))
    for wrong in (3, sum, "doubled"):
        with pytest.raises(TypeError):
            headrace.resumable(wrong)  # type: ignore[type-var]


@pytest.mark.parametrize("module", [pickle, cloudpickle])
def test_it_survives_pickling(module: Any) -> None:
    for declared in (stages.doubled, functools.partial(stages.doubled, dies_at=1), stages.Scaler(2).scale):
        assert is_resumable(module.loads(module.dumps(declared)))
    local = headrace.resumable(lambda items: list(items))
    assert is_resumable(cloudpickle.loads(cloudpickle.dumps(local)))


@pytest.mark.parametrize("lane", LANES)
def test_where_nothing_dies_it_changes_nothing(lane: str) -> None:
    with Runtime(lane=lane, num_workers=2, check=True) as rt:
        scaled = rt.submit(stages.Scaler(3).scale, rt.submit(stages.range_of, 1000))
        assert rt.submit(sum, scaled).result(TIMEOUT_S) == 3 * sum(range(1000))
