"""Warnings of tasks reach the caller, and the caller's filters reach the tasks, wherever these run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from headrace.graph import Graph
from headrace.lanes.processes import warned
from headrace.runtime import Runtime


class OwnWarning(UserWarning):
    """Of this module, which workers do not import by themselves."""


class LocalOnly(UserWarning):
    def __reduce__(self) -> Any:
        raise TypeError("stays here")


class Text(str):
    """Cannot be marshalled, as a ``str`` can."""


class LazyText(UserWarning):
    def __str__(self) -> str:
        return Text("look out late")


def warn(category: type[Warning], text: str = "look out") -> int:
    warnings.warn(text, category, stacklevel=1)
    return 1


def run(rt: Runtime, *args: Any, count: int = 1) -> list[Any]:
    calls: list[Any] = [(warn, args, None, ())] * count
    indices = list(range(count))
    return rt.run(Graph(indices[:], calls, [()] * count, ["warn"] * count, outputs=indices))


@pytest.fixture(params=["threads", "processes"])
def rt(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(lane=request.param, num_workers=1) as rt:
        yield rt


def test_caller_sees_them(rt: Runtime) -> None:
    for _ in range(2):  # a worker would not show them twice by itself
        with pytest.warns(OwnWarning, match="look out") as caught:
            assert run(rt, OwnWarning, count=3) == [1, 1, 1]
        assert len(caught) == 3
        assert caught[0].filename == __file__


def test_filters_of_the_caller_decide(rt: Runtime) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", UserWarning)
        warnings.filterwarnings("always", "listen", OwnWarning)
        run(rt, OwnWarning)
        run(rt, OwnWarning, "listen up")
        run(rt, RuntimeWarning)
    assert [str(entry.message) for entry in caught] == ["listen up", "look out"]


def test_error_is_raised_in_the_task(rt: Runtime) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", OwnWarning)
        with pytest.raises(OwnWarning, match="look out"):
            run(rt, OwnWarning)
        with pytest.warns(RuntimeWarning):
            run(rt, RuntimeWarning)


def test_what_cannot_be_pickled_comes_as_its_base(rt: Runtime) -> None:
    with pytest.warns(UserWarning, match="look out"):
        run(rt, LocalOnly)


def test_the_text_is_of_a_subclass_of_str(rt: Runtime) -> None:
    with pytest.warns(LazyText, match="look out late"):
        run(rt, LazyText)


def test_filters_by_module_and_line(rt: Runtime) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=r"tests?\.nowhere")
        run(rt, OwnWarning)
        warnings.filterwarnings("ignore", module=r".*test_warnings")
        run(rt, OwnWarning)
    assert len(caught) == 1


def test_equal_filters_are_described_once() -> None:
    with warnings.catch_warnings():
        first = warned._state()
        assert warned._state() is first
        warnings.simplefilter("error", OwnWarning)
        assert warned._state() != first


def test_those_of_futures_are_shown_too() -> None:
    with pytest.warns(OwnWarning, match="look out"), Runtime(lane="processes", num_workers=1) as rt:
        rt.submit(warn, OwnWarning).result()
