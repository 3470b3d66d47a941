"""persist(): results stay in the store, and the collections that hold them work everywhere."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from typing import Any

import dask
import pytest
from dask import delayed

from headrace.testing import TaskError, fail, identity, inc, make_array
from headrace_dask.compiling import BULKY_BYTES
from headrace_dask.internals import DataNode, StoredNode, literal_of

pytestmark = pytest.mark.shares_runtime

SCHEDULERS = ("headrace", "sync", "threads")
KEEPS_HANDLES = "client.persist" in inspect.getsource(dask.base.persist).partition("Protocol")[2]
"""Whether this dask asks a scheduler for its own persist; an older one puts the values into the graphs."""
needs_handles = pytest.mark.skipif(not KEEPS_HANDLES, reason="this dask has no protocol for persisting schedulers")


def test_array_computes_once(lane: str) -> None:
    np = pytest.importorskip("numpy")
    da = pytest.importorskip("dask.array")
    x = da.random.random((400, 400), chunks=200)
    y = x.persist()
    assert set(y.dask) == set(dask.core.flatten(x.__dask_keys__()))
    assert all(isinstance(node, StoredNode) for node in y.dask.values()) or not KEEPS_HANDLES
    first = y.compute()
    for scheduler in SCHEDULERS:
        np.testing.assert_array_equal(y.compute(scheduler=scheduler), first)
        np.testing.assert_allclose((y + 1).sum().compute(scheduler=scheduler), (first + 1).sum())


def test_processes_of_other_schedulers_read_persisted_values() -> None:
    """In a program of its own, because dask's scheduler leaves multiprocessing's helper process behind."""
    pytest.importorskip("numpy")
    code = """
import dask, dask.array, headrace_dask
if __name__ == "__main__":
    kept = dask.array.ones((300, 300), chunks=150).persist(scheduler="headrace", lane="processes")
    print(kept.sum().compute(scheduler="processes", num_workers=1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert (done.stdout.strip(), done.stderr) == ("90000.0", "")


def test_dataframe(lane: str) -> None:
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"a": range(20_000), "b": [f"text {i % 5}" for i in range(20_000)]})
    kept = (dd.from_pandas(frame, npartitions=2).assign(c=1)).persist()
    assert kept.npartitions == 2
    for scheduler in SCHEDULERS:
        assert kept.c.sum().compute(scheduler=scheduler) == 20_000
        assert kept.groupby("b").a.max().compute(scheduler=scheduler).max() == 19_999


def test_bag_delayed_and_nested(lane: str) -> None:
    db = pytest.importorskip("dask.bag")
    bag, (one, (two,)) = dask.persist(db.range(10, npartitions=2).map(inc), [delayed(inc)(1), (delayed(inc)(2),)])
    assert bag.sum().compute() == 55
    assert len(bag.__dask_graph__()) == 2
    assert dask.compute(one, two) == (2, 3)
    assert dict(one.dask) == {one.key: 2}


@needs_handles
def test_large_delayed_is_a_handle_and_a_small_one_a_value(lane: str) -> None:
    large, small = dask.persist(delayed(make_array)(4 * BULKY_BYTES), delayed(inc)(1))
    assert type(dict(large.dask)[large.key]) is StoredNode
    assert dict(small.dask) == {small.key: 2}
    assert delayed(len)(large).compute() == BULKY_BYTES // 2
    assert delayed(identity)(large).persist().compute().sum() == BULKY_BYTES // 2


def test_value_is_kept_for_as_long_as_the_collection(lane: str) -> None:
    large = delayed(make_array)(4 * BULKY_BYTES).persist()
    dependent = delayed(len)(large)
    del large
    assert dependent.compute() == BULKY_BYTES // 2


@needs_handles
def test_pickled_handle_is_the_value(lane: str) -> None:
    large = delayed(make_array)(4 * BULKY_BYTES).persist()
    node = pickle.loads(pickle.dumps(dict(large.dask)[large.key]))
    assert type(node) is DataNode
    assert node().sum() == BULKY_BYTES // 2


def test_node_is_a_data_node() -> None:
    class Handle:
        def result(self) -> str:
            return "value"

    node: Any = StoredNode("key", Handle())
    assert isinstance(node, DataNode)
    assert (node(), node.value, node.key, set(node.dependencies)) == ("value", "value", "key", set())
    assert node.copy().value == "value"
    assert node.substitute({"a": "b"}) is node
    assert (node.substitute({}, key="other").key, node.substitute({}, key="other")()) == ("other", "value")
    assert literal_of(node) is node.stored
    assert dask.base.tokenize(node) == dask.base.tokenize(node.copy())


def test_failure(lane: str) -> None:
    with pytest.raises(TaskError):
        delayed(fail)().persist()


def test_keywords_reach_the_scheduler() -> None:
    seen: list[Any] = []
    with dask.config.set(scheduler="headrace"):
        kept = delayed(inc)(1).persist(num_workers=1, lane="inline", optimize_graph=False, anything=1)
        assert kept.compute(callbacks=[(seen.append, None, None, None, None)]) == 2
    assert len(seen) == 1
