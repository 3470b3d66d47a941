"""The suite is what it says, and small versions of its graphs give results that are known."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from dask.local import get_sync

from headrace_dask.bench.digest import compare, digest
from headrace_dask.bench.tasks import small_graph
from headrace_dask.bench.workloads import PEERS, QUICK, RawGraph, graphs, own_graph, select, suite
from headrace_dask.bench.workloads.flights import pipeline

OURS = [name for name in suite() if name not in PEERS]


def test_the_suite_has_the_peers_workloads_and_six_more() -> None:
    names = list(suite())
    assert len(PEERS) == 11
    assert names[:11] == list(PEERS)
    assert len(OURS) >= 6
    assert {"inc10k", "flights"} <= set(QUICK) <= set(names)


def test_unknown_names_and_targets_are_refused() -> None:
    with pytest.raises(LookupError, match="unknown workload nosuch"):
        select(["inc10k", "nosuch"])
    with pytest.raises(LookupError, match="module:function"):
        own_graph("only_a_module")


def compute(graph: RawGraph) -> list[object]:
    return list(get_sync(dict(graph.dsk), graph.keys))


def test_graphs_give_what_can_be_reckoned() -> None:
    assert compute(graphs.independent(5)) == [1, 2, 3, 4, 5]
    assert compute(graphs.chain(7)) == [7]
    assert compute(graphs.tree(8)) == [sum(range(1, 9))]
    assert len(graphs.tree(4096).dsk) == 8191
    dsk, keys, expected = small_graph()
    assert tuple(get_sync(dsk, keys)) == expected


@pytest.mark.parametrize("name", ["text", "joins", "images", "grid", "svd"])
def test_a_workload_gives_equal_results_whenever_it_is_built(name: str) -> None:
    workload = suite()[name]
    digests = []
    for scheduler in ("sync", "threads"):
        (result,) = dask.compute(workload.build(), scheduler=scheduler)
        digests.append(digest(workload.normalise(result) if workload.normalise else result))
    assert compare(*digests, workload.rtol) in ("equal", "close")


@pytest.mark.timeout(200)
def test_the_flights_are_all_there() -> None:
    delays, models = dask.compute(*pipeline(), scheduler="sync")
    assert delays["arr_delay", "count"].sum() == 327_346
    assert delays["arr_delay", "mean"].loc["HA"] == pytest.approx(-6.9152, abs=1e-4)  # as in R's nycflights13
    assert [model["carrier"] for model in models] == sorted(delays.index)
    assert 0.6 < np.mean([model["auc"] for model in models]) < 0.8
