"""Work that depends on the hashes of text stays in one process."""

from __future__ import annotations

import functools

import pytest

from headrace.errors import MustStayHere
from headrace.lanes.processes.functions import Functions
from headrace.runtime import Runtime
from headrace.store.hashes import forbid_hash
from headrace.store.pickling import pack


def part_of(word: str) -> int:
    return hash(word) % 1000


def part_inside(words: list[str]) -> list[int]:
    return [hash(word) % 1000 for word in words]


@pytest.fixture(autouse=True)
def random_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)


@pytest.mark.parametrize("fn", [part_of, part_inside, hash])
def test_functions_that_hash_stay(fn: object) -> None:
    with pytest.raises(MustStayHere, match="PYTHONHASHSEED"):
        forbid_hash(fn)
    with pytest.raises(MustStayHere):
        Functions(lambda pack, *args: pack(*args)).number(0, fn, 0)


def test_functions_inside_arguments_are_found() -> None:
    local = 7
    with pytest.raises(MustStayHere):
        pack([functools.partial(lambda word: hash(word) % local)])


def test_other_functions_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_hash(len)
    forbid_hash(test_functions_that_hash_stay)
    monkeypatch.setitem(part_of.__globals__, "hash", len)
    forbid_hash(part_of)


def test_a_fixed_seed_lifts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    forbid_hash(part_of)


@pytest.mark.parametrize("lane", ["auto", "threads", "processes"])
def test_hashes_agree_with_this_process(lane: str) -> None:
    with Runtime(lane=lane, num_workers=2) as rt:
        assert list(rt.map(part_of, ["a", "b", "c"])) == [part_of("a"), part_of("b"), part_of("c")]
