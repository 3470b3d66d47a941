"""Work that depends on the hashes of text stays in one process."""

from __future__ import annotations

import builtins
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from headrace.errors import MustStayHere
from headrace.lanes.processes.functions import Functions
from headrace.program import call_with_keywords, last_reads, run_program
from headrace.runtime import Runtime
from headrace.store import hashes
from headrace.store.pickling import pack
from headrace.task import call_nested


def part_of(word: str) -> int:
    return hash(word) % 1000


def part_inside(words: list[str]) -> list[int]:
    return [hash(word) % 1000 for word in words]


def by_a_helper(word: str) -> int:
    return part_of(word)


def by_a_helper_of_a_helper(words: list[str]) -> list[int]:
    return [by_a_helper(word) for word in words]


def by_another_module(word: str) -> int:
    return here.part_of(word)


def by_default(word: str, key: Callable[[str], int] = hash) -> int:
    return key(word) % 1000


def by_a_table(word: str) -> int:
    return TABLE["part"](word)


def counted(fn: Callable[[str], int]) -> Callable[[str], int]:
    @functools.wraps(fn)
    def call(word: str) -> int:
        return fn(word)

    return call


@counted
def decorated(word: str) -> int:
    return hash(word) % 1000


@functools.lru_cache(maxsize=1)
def cached(word: str) -> int:
    return hash(word) % 1000


class Parts:
    def __call__(self, word: str) -> int:
        return self.part(word)

    def part(self, word: str) -> int:
        return hash(word) % 1000

    @staticmethod
    def part_of(word: str) -> int:
        return hash(word) % 1000


class Narrow(Parts):
    pass


def by_an_object(word: str) -> int:
    return PARTS.part(word)


@dataclass(frozen=True)
class Named:
    """Has a hash, as whatever may be in a set."""

    name: str

    def hash(self) -> str:
        return self.name


class NamedByHand:
    def __hash__(self) -> int:
        return hash("name")


def harmless(words: list[str]) -> set[Named]:
    return {Named(word) for word in words if NamedByHand() and Named(word).hash()}


def in_a_circle(number: int) -> int:
    return also_in_a_circle(number - 1) if number else 0


def also_in_a_circle(number: int) -> int:
    return in_a_circle(number - 1) if number else 0


here = sys.modules[__name__]
TABLE = {"part": part_of}
PARTS = Parts()
BY_NAME = (part_of, part_inside, by_a_helper, by_a_helper_of_a_helper, by_another_module, by_default, by_a_table)
HASHING = (*BY_NAME, decorated, cached, by_an_object, hash, Parts(), Narrow(), Parts().part, Narrow.part_of, Parts)


@pytest.fixture(autouse=True)
def random_hashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(hashes, "SEED", "")
    hashes.verdicts.clear()
    yield
    hashes.verdicts.clear()


@pytest.mark.parametrize("fn", [*HASHING, functools.partial(part_of), functools.partial(map, hash)])
def test_functions_that_hash_stay(fn: Any) -> None:
    for _ in range(2):  # the second time it is known
        with pytest.raises(MustStayHere, match="PYTHONHASHSEED"):
            Functions(lambda pack, *args: pack(*args)).number(0, fn, 0)


@pytest.mark.parametrize("fn", HASHING)
def test_functions_in_arguments_are_found(fn: Any) -> None:
    steps = ((len, ("ab",), None, ()), (fn, ("a",), None, ()))
    for args in (
        ("a", fn),
        ([{"key": fn}],),
        (steps, last_reads(steps), []),
        (fn, ("key",), "a"),
        (lambda: fn,),
        (functools.partial(call_with_keywords, fn),),
    ):
        with pytest.raises(MustStayHere):
            pack((args, None), called=True)


@pytest.mark.parametrize(
    "fn", [len, harmless, NamedByHand(), Named("a"), in_a_circle, run_program, call_nested, pack, Runtime]
)
def test_other_functions_travel(fn: Any) -> None:
    pack([fn], called=True)
    pack([fn], called=True)


def test_what_is_called_hash_may_be_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(part_of.__globals__, "hash", len)
    pack(part_of, called=True)


@pytest.mark.parametrize(
    "module", ["dask.array", "dask.bag", "dask.dataframe", "pandas", "numpy", "sklearn.linear_model"]
)
def test_what_libraries_offer_travels(module: str) -> None:
    offered = pytest.importorskip(module)
    for name in offered.__all__ if hasattr(offered, "__all__") else dir(offered):
        part = getattr(offered, name)
        if callable(part) and part is not builtins.hash:
            hashes.forbid_hash(part)


def test_no_verdict_outlives_what_it_is_about() -> None:
    def local() -> None: ...

    hashes.forbid_hash(local)
    known = id(local)
    assert hashes.verdicts[known] == ""
    del local
    assert known not in hashes.verdicts


def test_a_fixed_seed_lifts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SEED", "0")
    pack(part_of, called=True)
    pack(lambda word: hash(word), called=True)


@pytest.mark.parametrize(
    ("seed", "flag", "known"),
    [(None, "-B", ""), ("random", "-B", ""), ("", "-B", ""), ("7", "-B", "7"), ("7", "-E", "")],
)
def test_the_seed_is_the_one_that_the_process_has_begun_with(seed: str | None, flag: str, known: str) -> None:
    script = "import os; os.environ['PYTHONHASHSEED'] = '5'\nfrom headrace.store import hashes; print(hashes.SEED)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    environment |= {} if seed is None else {"PYTHONHASHSEED": seed}
    told = subprocess.run([sys.executable, flag, "-c", script], env=environment, capture_output=True, check=True)
    assert told.stdout.decode().strip() == known


@pytest.mark.parametrize("lane", ["auto", "threads", "processes"])
@pytest.mark.parametrize("fn", [part_of, by_a_helper, Parts().part])
def test_hashes_agree_with_this_process(lane: str, fn: Any) -> None:
    with Runtime(lane=lane, num_workers=2) as rt:
        assert list(rt.map(fn, ["a", "b", "c"])) == [part_of("a"), part_of("b"), part_of("c")]
        assert rt.submit(list, rt.submit(map, fn, ["a", "b"])).result(60.0) == [part_of("a"), part_of("b")]
