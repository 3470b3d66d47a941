"""What a program changes between two submits is seen by the second one, also where functions travel by value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from headrace.config import LANES
from headrace.runtime import Runtime


class Model:
    def __init__(self, weight: int) -> None:
        self.weight = weight

    def __call__(self, x: int) -> int:
        return self.weight * x


def a_callable_object() -> tuple[Callable[[int], int], Callable[[int], object]]:
    model = Model(0)
    return model, lambda weight: setattr(model, "weight", weight)


def a_partial() -> tuple[Callable[[int], int], Callable[[int], object]]:
    settings: dict[str, int] = {}
    return functools.partial(_scaled, settings), lambda weight: settings.update(weight=weight)


def a_partial_of_a_large_array() -> tuple[Callable[[int], int], Callable[[int], object]]:
    array = np.zeros(100_000, np.int64)
    return functools.partial(_scaled_sum, array), functools.partial(array.__setitem__, 0)


def a_function_of_main() -> tuple[Callable[[int], int], Callable[[int], object]]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def scale(x): return weight * x", namespace)
    return namespace["scale"], lambda weight: namespace.update(weight=weight)


def _scaled(settings: dict[str, int], x: int) -> int:
    return settings["weight"] * x


def _scaled_sum(array: Any, x: int) -> int:
    return int(array.sum()) * x


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize(
    "make",
    [a_callable_object, a_partial, a_partial_of_a_large_array, a_function_of_main],
    ids=lambda make: make.__name__,
)
def test_a_change_is_seen(lane: str, make: Callable[[], tuple[Callable[[int], int], Callable[[int], object]]]) -> None:
    function, change = make()
    with Runtime(lane=lane, num_workers=1) as rt:
        for weight in (1, 2, 3):
            change(weight)
            assert list(rt.map(function, [10, 20])) == [weight * 10, weight * 20]


def test_large_functions_of_futures_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.lanes.processes.functions._MOST_BYTES", 2 << 20)
    function = functools.partial(_scaled_sum, np.ones(1 << 17, np.int64))
    with Runtime(lane="processes", num_workers=1) as rt:
        for x in range(12):
            assert rt.submit(function, x).result() == x << 17
            assert rt.status()["store"]["segments"] <= 6
