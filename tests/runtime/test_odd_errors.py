"""Exceptions that are made in other ways than most fail their task like any other, and harm nobody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace import testing
from headrace.config import LANES
from headrace.runtime import Runtime

TIMEOUT_S = 30.0


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
