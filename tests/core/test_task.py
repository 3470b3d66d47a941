"""Calls: what ``run_call`` puts where."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.task import Call, Slotted, call_nested, map_nested, run_call
from headrace.testing import TaskError, collect, fail, inc

VALUES = {3: "three", 4: "four", 5: "five"}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ((collect, (), None, ()), ((), {})),
        ((collect, (1, 2), None, ()), ((1, 2), {})),
        ((collect, (1,), {"a": 2}, ()), ((1,), {"a": 2})),
        ((collect, (None, 1, None), None, ((0, 3), (2, 5))), (("three", 1, "five"), {})),
        ((collect, (None,), {"a": 2}, ((0, 4),)), (("four",), {"a": 2})),
        ((collect, (None, 1), None, ((0, (3, 5, 3)),)), ((["three", "five", "three"], 1), {})),
        ((collect, (None,), None, ((0, ()),)), (([],), {})),
    ],
)
def test_holes_are_filled_with_values_or_lists_of_values(call: Call, expected: Any) -> None:
    assert run_call(call, VALUES) == expected


def test_a_call_stays_as_it_was_and_can_run_again() -> None:
    call: Call = (collect, (None, [1]), {"a": [2]}, ((0, 3),))
    before = copy.deepcopy(call)
    assert run_call(call, VALUES) == run_call(call, VALUES)
    assert call == before
    assert run_call(pickle.loads(pickle.dumps(call)), VALUES) == run_call(call, VALUES)


def test_what_the_function_raises_comes_through_as_itself() -> None:
    with pytest.raises(TaskError, match="in the task"):
        run_call((fail, ("in the task",), None, ()), {})


def test_a_value_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        run_call((inc, (None,), None, ((0, 99),)), VALUES)


@given(st.lists(st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9)).map(tuple), st.none()), max_size=6))
def test_any_mixture_of_holes_and_plain_arguments(plan: list[int | tuple[int, ...] | None]) -> None:
    values = {i: object() for i in range(10)}
    holes = tuple((position, dep) for position, dep in enumerate(plan) if dep is not None)
    given_args, _ = run_call((collect, tuple("plain" for _ in plan), None, holes), values)
    for dep, got in zip(plan, given_args, strict=True):
        if dep is None:
            assert got == "plain"
        elif isinstance(dep, tuple):
            assert [id(value) for value in got] == [id(values[d]) for d in dep]
        else:
            assert got is values[dep]


NESTED = st.recursive(
    st.one_of(st.integers(0, 4).map(Slotted), st.text(max_size=2), st.none()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
    ),
    max_leaves=12,
)


def plug(obj: Any, values: list[Any]) -> Any:
    """The slow and obvious way to fill nested arguments."""
    if isinstance(obj, Slotted):
        return values[obj.number]
    if isinstance(obj, (list, tuple)):
        return type(obj)(plug(item, values) for item in obj)
    if isinstance(obj, dict):
        return {key: plug(value, values) for key, value in obj.items()}
    return obj


@given(st.lists(NESTED, max_size=3), st.dictionaries(st.sampled_from("xyz"), NESTED))
def test_nested_slots_are_filled_wherever_they_stand(args: list[Any], kwargs: dict[str, Any]) -> None:
    values = [f"value {i}" for i in range(5)]
    got = call_nested(collect, tuple(args), kwargs, values)
    assert got == (tuple(plug(args, values)), plug(kwargs, values))


def test_a_slot_may_stand_as_the_key_of_a_dict_and_survives_pickling() -> None:
    args = pickle.loads(pickle.dumps(({Slotted(0): [Slotted(1)]},)))
    assert call_nested(collect, args, {}, ["a", "b"]) == (({"a": ["b"]},), {})


def test_nested_slots_leave_other_containers_alone() -> None:
    class Box(list[Any]):
        pass

    box = Box([Slotted(0)])
    assert call_nested(collect, (box,), {}, ["a"])[0][0] is box


@given(NESTED)
def test_map_nested_shares_what_it_does_not_change(obj: Any) -> None:
    assert map_nested(obj, lambda leaf: leaf) is obj
    values = [f"value {i}" for i in range(5)]
    assert map_nested(obj, lambda leaf: plug(leaf, values)) == plug(obj, values)


def test_map_nested_takes_what_contains_itself_or_is_nested_deeply() -> None:
    itself: list[Any] = []
    itself.append({"again": itself})
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep, deep]
    for obj in (itself, deep):
        assert map_nested(obj, lambda leaf: leaf) is obj
