"""Exceptions that are made in other ways than most fail their task like any other, and harm nobody else."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from headrace import testing
from headrace.config import LANES
from headrace.errors import InternalError, RemoteTraceback
from headrace.graph import Graph
from headrace.lanes.processes.failures import describe_failure, name_result, revive_failure
from headrace.runtime import Runtime

TIMEOUT_S = 30.0
GROUP: Any = getattr(builtins, "ExceptionGroup", None)  # Python 3.10 has none


@pytest.fixture(params=LANES)
def rt(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(lane=request.param, num_workers=1) as rt:
        yield rt


class Text(str):
    """Cannot be marshalled, as a ``str`` can."""


class LazyTextError(Exception):
    """As those of libraries that translate their messages when they are shown."""

    def __str__(self) -> str:
        return Text("shown late")


def raise_lazy_text() -> None:
    raise LazyTextError


def test_its_text_is_of_a_subclass_of_str(rt: Runtime) -> None:
    error = rt.submit(raise_lazy_text).exception(TIMEOUT_S)
    assert type(error) is LazyTextError
    assert str(error) == "shown late"
    assert rt.submit(testing.inc, 1).result(TIMEOUT_S) == 2


# --- what refuses that its attributes are set -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotsError(Exception):
    code: int


@dataclasses.dataclass
class UnhashableError(Exception):
    code: int


class SealedError(Exception):
    """Its constructor wants other arguments than it keeps, and what it keeps in slots cannot be set later."""

    __slots__ = ("code",)

    def __init__(self, *, code: int) -> None:
        super().__init__("sealed")
        object.__setattr__(self, "code", code)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise TypeError(f"{name} cannot be set")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SealedError) and other.code == self.code

    __hash__ = None  # type: ignore[assignment]  # as classes with an __eq__ of their own have it


ERRORS: list[Callable[[], Exception]] = [
    lambda: FrozenError(1),
    lambda: FrozenSlotsError(1),
    lambda: UnhashableError(1),
    lambda: SealedError(code=1),
]


def raise_made(make: Callable[[], Exception]) -> None:
    raise make()


def raise_group(make: Callable[[], Exception]) -> None:
    raise GROUP("all of them", [make(), GROUP("inner", [make()])])


@pytest.mark.parametrize("make", ERRORS)
def test_it_refuses_attributes(rt: Runtime, make: Callable[[], Exception]) -> None:
    assert rt.submit(raise_made, make).exception(TIMEOUT_S) == make()
    with pytest.raises(type(make())) as caught:
        rt.run(graph(raise_made, make))
    assert caught.value == make()
    assert rt.submit(testing.inc, 1).result(TIMEOUT_S) == 2


@pytest.mark.skipif(GROUP is None, reason="this Python has no exception groups")
@pytest.mark.parametrize("make", ERRORS)
def test_a_group_has_it(rt: Runtime, make: Callable[[], Exception]) -> None:
    error: Any = rt.submit(raise_group, make).exception(TIMEOUT_S)
    assert type(error) is GROUP
    assert error.message == "all of them"
    assert [error.exceptions[0], *error.exceptions[1].exceptions] == [make(), make()]


@pytest.mark.parametrize("make", ERRORS)
def test_a_quick_graph_raises_it(make: Callable[[], Exception]) -> None:
    with Runtime(lane="auto", num_workers=1) as rt:
        for _ in range(10):
            rt.run(graph(testing.inc, 1))
        with pytest.raises(type(make())) as caught:
            rt.run(graph(raise_made, make))
        assert caught.traceback[-1].name == "raise_made"
        assert not rt._engine._threads.nested


@pytest.mark.parametrize("make", ERRORS)
def test_its_cause_is_the_remote_traceback(make: Callable[[], Exception]) -> None:
    error = revive_failure(describe_failure(make()))
    assert error == make()
    assert type(error.__cause__) is RemoteTraceback
    name_result(error, "this one")
    assert "this one" in str(error.__cause__)


def graph(fn: Callable[..., Any], *args: Any) -> Graph:
    return Graph(["task"], [(fn, args, None, ())], [()], ["family"], outputs=[0])


# --- none of a task ---------------------------------------------------------------------------------------------------


def test_a_slot_whose_thread_breaks_tells_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime(lane="threads", num_workers=1) as rt:
        with monkeypatch.context() as patch:
            patch.setattr(rt._engine._threads, "run", raise_made)
            with pytest.raises(InternalError, match="thread of a slot"):
                rt.submit(testing.inc, 1).result(TIMEOUT_S)
        assert rt.submit(testing.inc, 1).result(TIMEOUT_S) == 2
