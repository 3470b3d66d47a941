"""Translation: the same values as dask's own schedulers, for every kind of node, without a runtime."""

from __future__ import annotations

import functools
import operator
import pickle
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from operator import add, mul
from typing import Any

import pytest
from dask._task_spec import Alias, DataNode, Dict, List, Set, Task, TaskRef, Tuple, convert_legacy_graph
from dask.local import get_sync
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import BadKeyError, CycleError, GraphError, MissingDependencyError, MissingKeyError
from headrace.graph import Graph
from headrace.program import run_program
from headrace.testing import collect, identity, inc, sum_up
from headrace_dask.compiling import BULKY_BYTES
from headrace_dask.translate import translate

Run = Callable[[Graph], list[Any]]
Pair = namedtuple("Pair", "a b")


class TracedTask(Task):
    """A user's own kind of node: dask calls it, and so must whatever stands in for dask."""

    def __call__(self, values: Any = ()) -> Any:
        return ("traced", super().__call__(values))


def fused(key: Any, *tasks: Task) -> Task:
    return Task.fuse(*tasks, key=key)


GRAPHS: dict[str, dict[Any, Any]] = {
    "literal": {"out": 5},
    "legacy task": {"out": (inc, 1)},
    "legacy key": {"a": 1, "out": (inc, "a")},
    "legacy string that is no key": {"a": 1, "out": (collect, "a", "b")},
    "legacy tuple key": {("a", 0): 1, "out": (collect, ("a", 0), ("a", 1))},
    "legacy integer key": {1: 10, "out": (collect, 1, 2, True)},
    "legacy float key": {1.5: 10, "out": (collect, 1.5, 2.5)},
    "legacy list of keys": {"a": 1, "b": 2, "out": (sum_up, ["a", "b"])},
    "legacy list of keys and others": {"a": 1, "out": (collect, ["a", 5, "c"])},
    "legacy list of lists": {"a": 1, "b": 2, "out": (collect, [["a"], ["b", ["a"]]])},
    "legacy empty containers": {"out": (collect, [], (), {}, set(), frozenset())},
    "legacy set": {"a": 1, "b": 2, "out": (collect, {"a", "b"}, frozenset(["a"]))},
    "legacy tuple that is no key": {"a": 1, "out": (collect, ("a", 2))},
    "legacy dict is left alone": {"a": 1, "out": (collect, {"x": "a", "a": ["a"]})},
    "legacy task in a task": {"a": 1, "out": (inc, (add, "a", (inc, "a")))},
    "legacy task in a list": {"a": 1, "out": (sum_up, [(inc, "a"), "a", 3])},
    "legacy unhashable in a tuple": {"a": 1, "out": (collect, ("a", [1], {}))},
    "legacy namedtuple": {"a": 1, "out": (collect, Pair("a", 2))},
    "legacy alias": {"a": 1, "b": "a", "out": "b"},
    "legacy list value": {"a": 1, "out": ["a", 2, ["a"]]},
    "legacy literal list": {"out": [1, 2, [3]]},
    "legacy same key twice": {"a": 4, "out": (mul, "a", "a")},
    "legacy nullary": {"out": (list,)},
    "legacy callable value": {"a": inc, "out": (functools.reduce, add, [1, 2, 3])},
    "task": {"out": Task("out", add, 1, 2)},
    "task with references": {"a": DataNode("a", 1), "out": Task("out", add, TaskRef("a"), Alias("a"))},
    "task with keywords": {"out": Task("out", collect, 1, x=2, y=[3])},
    "task with keyword references": {"a": 1, "out": Task("out", collect, 0, x=TaskRef("a"), y=2, z=List(TaskRef("a")))},
    "task with list": {"a": 1, "b": 2, "out": Task("out", sum_up, List(TaskRef("a"), TaskRef("b"), TaskRef("a")))},
    "task with empty list": {"out": Task("out", collect, List(), Tuple(), Dict({}))},
    "task with mixed list": {"a": 1, "out": Task("out", collect, List(TaskRef("a"), 2, List(TaskRef("a"), "a")))},
    "task with tuple, set, dict": {
        "a": 1,
        "out": Task("out", collect, Tuple(TaskRef("a"), 2), Set(TaskRef("a")), Dict({"k": TaskRef("a"), "l": 3})),
    },
    "task in a task": {"a": 1, "out": Task("out", add, Task("n", inc, TaskRef("a")), Task(None, inc, 5))},
    "data in a task": {"a": 1, "out": Task("out", collect, DataNode(None, [1, 2]), TaskRef("a"))},
    "alias": {"a": Task("a", inc, 1), "b": Alias("b", "a"), "out": Alias("out", "b")},
    "alias inside": {"a": 1, "b": Alias("b", "a"), "out": Task("out", inc, TaskRef("b"))},
    "list as a node": {"a": 1, "out": List(TaskRef("a"), 2)},
    "subclass": {"a": 1, "out": TracedTask("out", inc, TaskRef("a"))},
    "subclass inside": {"a": 1, "out": Task("out", collect, TracedTask("n", inc, TaskRef("a")), TaskRef("a"))},
    "fused chain": {
        "x": 1,
        "out": fused("out", Task("a", inc, TaskRef("x")), Task("b", inc, TaskRef("a")), Task("c", inc, TaskRef("b"))),
    },
    "fused diamond": {
        "x": 1,
        "y": 10,
        "out": fused(
            "out",
            Task("a", inc, TaskRef("x")),
            Task("b", add, TaskRef("a"), TaskRef("y")),
            Task("c", collect, TaskRef("a"), TaskRef("b"), List(TaskRef("a"), TaskRef("y")), k=TaskRef("b")),
        ),
    },
    "fused without inputs": {"out": fused("out", Task("a", inc, 1), Task("b", inc, TaskRef("a")))},
    "fused in fused": {
        "x": 1,
        "out": fused(
            "out",
            fused("f", Task("a", inc, TaskRef("x")), Task("b", inc, TaskRef("a"))),
            Task("c", add, TaskRef("f"), TaskRef("x")),
        ),
    },
    "fused with data": {"out": fused("out", DataNode("a", 5), Task("b", inc, TaskRef("a")))},
    "fused with alias": {"x": 3, "out": fused("out", Alias("a", "x"), Task("b", inc, TaskRef("a")))},
    "fused with subclass": {
        "x": 3,
        "out": fused("out", TracedTask("a", inc, TaskRef("x")), Task("b", collect, TaskRef("a"))),
    },
    "empty tuple is a value": {"a": (), "out": (collect, "a")},
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("form", ["as given", "converted", "alias tasks"])
def test_same_value_as_dask(name: str, form: str, run_graph: Run) -> None:
    dsk = GRAPHS[name]
    expected = get_sync(dsk, "out")
    given = convert_legacy_graph(dsk) if form == "converted" else dsk
    (value,) = run_graph(translate(given, ["out"], alias_tasks=form == "alias tasks"))
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("name", [name for name in GRAPHS if "subclass" not in name])
def test_calls_need_no_dask_to_be_unpickled(name: str) -> None:
    """A worker process must not import dask because of an argument that a value replaces anyway."""
    if name == "legacy namedtuple":
        pytest.skip("its namedtuple is defined in a test module")
    calls = translate(GRAPHS[name], ["out"]).calls
    assert b"dask" not in pickle.dumps([call for call in calls if call is not None])


def test_runs_twice_with_fresh_containers(run_graph: Run) -> None:
    graph = translate({"a": 1, "out": Task("out", identity, List(1, TaskRef("a")))}, ["out"])
    (first,), (second,) = run_graph(graph), run_graph(graph)
    first.append(3)
    assert second == [1, 1]


def test_fused_task_is_a_program_that_drops_values_early() -> None:
    x, a, b, c = (Task(k, inc, TaskRef(d)) for k, d in [("x", "w"), ("a", "x"), ("b", "a"), ("c", "b")])
    graph = translate({"w": 1, "out": fused("out", x, a, b, c)}, ["out"])
    fn, (steps, drops, _), _, _ = graph.calls[-1]
    assert fn is run_program
    assert [step[0] for step in steps] == [inc] * 4
    assert drops == ((-1,), (0,), (1,), (2,))


def test_fused_task_computes_nothing_that_its_output_does_not_need(run_graph: Run) -> None:
    dsk = {"out": fused("out", Task("a", inc, 1), Task("b", inc, TaskRef("a")))}
    dsk["out"].args[0]["unused"] = Task("unused", divmod, 1, 0)
    assert run_graph(translate(dsk, ["out"])) == [3]


def test_only_what_is_needed_is_translated() -> None:
    graph = translate({"a": 1, "b": (inc, "a"), "other": (inc, "b"), "missing": (inc, "b")}, ["b"])
    assert graph.keys == ["a", "b"]


def test_outputs_may_repeat_and_be_aliases(run_graph: Run) -> None:
    graph = translate({"a": (inc, 1), "b": "a", "c": Alias("c", "b")}, ["c", "a", "b", "a"])
    assert graph.outputs == [0, 0, 0, 0]
    assert run_graph(graph) == [2, 2, 2, 2]


def test_depth_first_in_the_order_of_arguments() -> None:
    dsk = {"l1": (inc, 1), "l2": (inc, "l1"), "r1": (inc, 1), "r2": (inc, "r1"), "out": (add, "l2", "r2")}
    assert translate(dsk, ["out"]).keys == ["l1", "l2", "r1", "r2", "out"]


def test_families() -> None:
    dsk: dict[Any, Any] = {
        ("read-csv-0123456789abcdef0123456789abcdef", 0): (inc, 1),
        ("read-csv-aaaaaaaaaaaaaaaa0123456789abcdef", 0): (inc, 1),
        "inc-0b9bb5f3-ab77-4f0c-b3a6-bb5b0d0e4f4e": (inc, 1),
        "inc-1b9bb5f3-ab77-4f0c-b3a6-bb5b0d0e4f4e": (inc, 1),
        "x1": (inc, 2),
        "x2": (inc, 2),
        "x3": (functools.partial(inc), 2),
        7: (add, 2, 3),
        ("sum", 0, 1): (add, 2, 3),
    }
    families = translate(dsk, list(dsk)).families
    assert families[0] == families[1]
    assert families[2] == families[3]
    assert families[4] is families[5] is families[6]
    assert len({families[0], families[2], families[4], families[7], families[8]}) == 5


def test_steps_that_dask_names_alike_are_not_taken_to_behave_alike() -> None:
    dsk: dict[Any, Any] = {
        ("getitem-0123456789abcdef0123456789abcdef", 0): (operator.getitem, [1], 0),  # a column of a data frame
        ("getitem-aaaaaaaaaaaaaaaa0123456789abcdef", 0, 0): (operator.getitem, [1], 0),  # a slice of an array
        ("getitem-aaaaaaaaaaaaaaaa0123456789abcdef", 0, 1): (add, 1, 2),
    }
    assert len(set(translate(dsk, list(dsk)).families)) == 3


def test_large_argument_becomes_one_shared_value(run_graph: Run) -> None:
    np = pytest.importorskip("numpy")
    large, small = np.zeros(BULKY_BYTES // 8), np.zeros(2)
    dsk: dict[Any, Any] = {
        "a": (collect, large, small),
        "b": Task("b", collect, large, x=large),
        "out": Task("out", collect, TaskRef("a"), TaskRef("b")),
    }
    graph = translate(dsk, ["out"])
    assert [value is large for value in graph.literals.values()] == [True]
    (((a, b), _),) = run_graph(graph)
    assert a[0][0] is large
    assert a[0][1] is small
    assert b[0][0] is large
    assert b[1]["x"] is large


def test_known_values_are_not_computed(run_graph: Run) -> None:
    dsk = {"a": (divmod, 1, 0), "b": (collect, "a", "elsewhere")}
    graph = translate(dsk, ["b", "elsewhere"], values={"a": 5, "elsewhere": 6})
    assert run_graph(graph) == [((5, 6), {}), 6]


# --- graphs that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsk",
    [
        {"a": (inc, "b"), "b": (inc, "a")},
        {"a": (inc, "a")},
        {"a": Alias("a", "b"), "b": Alias("b", "a")},
        {"a": Task("a", sum_up, List(1, TaskRef("b"))), "b": (inc, "c"), "c": (inc, "b")},
    ],
)
def test_cycle(dsk: dict[str, Any]) -> None:
    with pytest.raises(CycleError, match="Cycle detected") as error:
        translate(dsk, ["a"])
    assert isinstance(error.value, RuntimeError)


def test_cycle_names_its_keys_and_no_others() -> None:
    dsk = {"start": (inc, "a"), "a": (inc, "b"), "b": (inc, "a")}
    with pytest.raises(CycleError, match=r"a->b->a$"):
        translate(dsk, ["start"])


def test_wanted_key_is_missing() -> None:
    with pytest.raises(MissingKeyError, match="'nope'") as error:
        translate({"a": 1}, ["a", "nope"])
    assert isinstance(error.value, KeyError)


def test_needed_key_is_missing() -> None:
    with pytest.raises(MissingDependencyError, match=r"Missing dependency 'nope' for dependents \{'a'\}") as error:
        translate({"a": Task("a", inc, TaskRef("nope"))}, ["a"])
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, KeyError)


@pytest.mark.parametrize("node", ["a", Alias("a"), Alias("a", "a")])
def test_key_that_is_its_own_alias(node: Any) -> None:
    with pytest.raises(KeyError):
        get_sync({"a": node}, "a")
    with pytest.raises(MissingKeyError):
        translate({"a": node}, ["a"])


@pytest.mark.parametrize("key", [{}, ["a"], {"a"}, ("a", [])])
def test_unhashable_key(key: Any) -> None:
    with pytest.raises(BadKeyError) as error:
        translate({"a": 1}, [key])
    assert isinstance(error.value, GraphError)
    assert isinstance(error.value, TypeError)


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["legacy", "task", "alias", "fused"])
def test_chain_of_100_000(kind: str, run_graph: Run) -> None:
    count = 100_000
    dsk: dict[Any, Any] = {0: (inc, -1)}
    if kind == "legacy":
        dsk.update({i: (inc, i - 1) for i in range(1, count)})
    elif kind == "task":
        dsk.update({i: Task(i, inc, TaskRef(i - 1)) for i in range(1, count)})
    elif kind == "alias":
        dsk.update({i: Alias(i, i - 1) for i in range(1, count)})
    else:
        dsk = {count - 1: fused("f", *[Task(i, inc, TaskRef(i - 1) if i else -1) for i in range(count)])}
    assert run_graph(translate(dsk, [count - 1])) == [0 if kind == "alias" else count - 1]


def test_cycle_of_100_000() -> None:
    dsk = {i: (inc, (i + 1) % 100_000) for i in range(100_000)}
    with pytest.raises(CycleError):
        translate(dsk, [0])


def test_a_million_tasks() -> None:
    count = 1_000_000
    dsk: dict[Any, Any] = {("x", i): (inc, i) for i in range(count)}
    dsk["out"] = (sum_up, list(dsk))
    graph = translate(dsk, ["out"])
    assert len(graph.calls) == count + 1
    assert graph.deps[-1] == tuple(range(count))


def test_translating_leaves_the_collector_as_it_was() -> None:
    work = "from headrace_dask.translate import translate; translate({'a': 1}, ['a'])"
    for before, after in [("gc.disable()", "False"), ("gc.enable()", "True")]:
        code = f"import gc; {before}; {work}; print(gc.isenabled())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == after


# --- random graphs ----------------------------------------------------------------------------------------------------


@st.composite
def random_graphs(draw: st.DrawFn) -> dict[Any, Any]:
    """Graphs of up to 12 tasks whose arguments are any nesting of what dask allows."""
    dsk: dict[Any, Any] = {}
    for number in range(draw(st.integers(1, 12))):
        keys = list(dsk)
        leaves: Any = st.integers(100, 105) | st.text("xyz", max_size=2) | st.none()
        old: Any = st.sampled_from(keys) if keys else st.nothing()
        legacy = st.recursive(
            leaves | old,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.tuples(st.just(collect), inner)
                | st.tuples(inner, inner)
                | st.dictionaries(st.text("ab", max_size=1), inner, max_size=2)
            ),
            max_leaves=6,
        )
        new = st.recursive(
            leaves | old.map(TaskRef),
            lambda inner: (
                st.lists(inner, max_size=3).map(lambda items: List(*items))
                | st.lists(inner, max_size=3).map(lambda items: Tuple(*items))
                | st.tuples(inner, inner).map(lambda pair: Task("inner", collect, pair[0], k=pair[1]))
                | st.dictionaries(st.text("ab", max_size=1), inner, max_size=2).map(Dict)
            ),
            max_leaves=6,
        )
        key = draw(st.sampled_from([f"k-{number}", ("t", number), number]))
        if draw(st.booleans()):
            dsk[key] = (collect, *draw(st.lists(legacy, max_size=3)))
        else:
            dsk[key] = Task(key, collect, *draw(st.lists(new, max_size=3)))
    return dsk


@settings(max_examples=150, deadline=None)
@given(random_graphs())
def test_random_graphs(run_graph: Run, dsk: dict[Any, Any]) -> None:
    keys = list(dsk)
    assert tuple(run_graph(translate(dsk, keys))) == get_sync(dsk, keys)


class Moody:
    @property
    def nbytes(self) -> int:
        raise RuntimeError("not now")


def test_argument_whose_size_cannot_be_asked_for() -> None:
    moody = Moody()
    graph = translate({"a": (type, moody), "b": Task("b", type, moody)}, ["a", "b"])
    assert [call and call[1] for call in graph.calls] == [(moody,), (moody,)]
