"""``depth_first``: an order in which one worker could run the graph from left to right."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import CycleError, MissingKeyError
from headrace.graph import Graph, depth_first

Dependencies = dict[Hashable, Sequence[Hashable]]


def order(deps: Dependencies, *outputs: Hashable) -> list[Hashable]:
    number = depth_first(outputs, deps.__getitem__)
    assert list(number.values()) == list(range(len(number)))
    return list(number)


@st.composite
def dags(draw: st.DrawFn) -> tuple[Dependencies, list[Hashable]]:
    """A random graph without a cycle, whose keys say nothing about the order, and some outputs."""
    size = draw(st.integers(1, 30))
    keys = draw(st.permutations([("key", i) for i in range(size)]))
    deps: Dependencies = {
        key: draw(st.lists(st.sampled_from(keys[:i]), max_size=4)) if i else [] for i, key in enumerate(keys)
    }
    return deps, draw(st.lists(st.sampled_from(keys), max_size=5))


def needed(deps: Dependencies, outputs: Sequence[Hashable]) -> set[Hashable]:
    found: set[Hashable] = set()
    open_keys = list(outputs)
    while open_keys:
        key = open_keys.pop()
        if key not in found:
            found.add(key)
            open_keys += deps[key]
    return found


@given(dags())
def test_numbers_exactly_what_is_needed_dependencies_first(graph: tuple[Dependencies, list[Hashable]]) -> None:
    deps, outputs = graph
    asked: Counter[Hashable] = Counter()

    def dependencies(key: Hashable) -> Sequence[Hashable]:
        asked[key] += 1
        return deps[key]

    number = depth_first(outputs, dependencies)
    assert set(number) == needed(deps, outputs)
    assert list(number.values()) == list(range(len(number)))
    assert all(number[dep] < number[key] for key in number for dep in deps[key])
    assert set(asked.values()) <= {1}


@given(dags())
def test_finishes_what_it_has_begun(graph: tuple[Dependencies, list[Hashable]]) -> None:
    """All that is new between two outputs belongs to the second, and likewise below every key: branch after branch."""
    deps, outputs = graph
    expected: list[Hashable] = []

    def visit(key: Hashable) -> None:
        if key not in expected:
            for dep in deps[key]:
                visit(dep)
            expected.append(key)

    for output in outputs:
        visit(output)
    assert order(deps, *outputs) == expected


@given(dags(), st.data())
def test_every_circle_is_found_and_named(graph: tuple[Dependencies, list[Hashable]], data: st.DataObject) -> None:
    deps, outputs = graph
    start = data.draw(st.sampled_from(sorted(deps)))
    below = data.draw(st.sampled_from(sorted(needed(deps, [start]))))
    deps = {**deps, below: [*deps[below], start]}
    with pytest.raises(CycleError) as caught:
        depth_first([*outputs, start], deps.__getitem__)
    named = str(caught.value).removeprefix("cycle in the graph: ").split(" -> ")
    by_name = {repr(key): key for key in deps}
    circle = [by_name[name] for name in named]
    assert circle[0] == circle[-1]
    assert all(after in deps[before] for before, after in itertools.pairwise(circle))


def test_branches_are_opened_one_after_the_other() -> None:
    deps: Dependencies = {"sum": ["b0", "b1"], "b0": ["a0"], "b1": ["a1"], "a0": [], "a1": []}
    assert order(deps, "sum") == ["a0", "b0", "a1", "b1", "sum"]


def test_no_outputs_need_nothing() -> None:
    assert order({"a": []}) == []


def test_a_task_that_depends_on_itself_is_a_circle() -> None:
    with pytest.raises(CycleError, match=r"cycle in the graph: 'a' -> 'a'"):
        order({"a": ["a"]}, "a")


def test_a_circle_is_told_without_the_way_that_leads_to_it() -> None:
    with pytest.raises(CycleError, match=r"^cycle in the graph: 'b' -> 'c' -> 'b'$"):
        order({"a": ["b"], "b": ["c"], "c": ["b"]}, "a")


def test_what_dependencies_raises_comes_through() -> None:
    def dependencies(key: Hashable) -> Sequence[Hashable]:
        raise MissingKeyError(f"nothing makes {key!r}")

    with pytest.raises(MissingKeyError, match="nothing makes 'x'"):
        depth_first(["x"], dependencies)


def test_a_chain_of_any_length_needs_no_recursion() -> None:
    length = 100_000
    number = depth_first([length], lambda key: [key - 1] if key else [])
    assert number == {key: key for key in range(length + 1)}


def test_graphs_do_not_share_their_lists() -> None:
    first, second = Graph(), Graph()
    first.keys.append("a")
    first.literals[0] = 1
    first.pinned.add(0)
    assert second == Graph()
