"""Random graphs of stages end, and give what they give one stage after the other: no hang, no leak.

``HEADRACE_STREAM_GRAPHS=10000`` makes it so many; a graph that fails is run again by its seed. Hypothesis draws fewer,
and makes one that fails as small as it can.
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_graphs import one_by_one, plain, random_graph

from headrace.runtime import Runtime

GRAPHS = int(os.environ.get("HEADRACE_STREAM_GRAPHS", "300"))
LANES = ("threads", "auto", "inline", "processes")
BATCH = 25
"""So many graphs share a runtime."""


@pytest.mark.timeout(40)
@pytest.mark.parametrize("first", range(0, GRAPHS, BATCH))
def test_random_graphs(first: int) -> None:
    rng = random.Random(first)
    lane, workers = rng.choice(LANES), rng.randint(1, 3)
    budget = rng.choice((1, 100, 3000, 1 << 20))
    with Runtime(lane=lane, num_workers=workers, stream_buffer_bytes=budget, check=True) as rt:
        for seed in range(first, first + BATCH):
            graph = random_graph(random.Random(seed))
            assert [plain(value) for value in rt.run(graph)] == one_by_one(graph), f"seed {seed}"


@pytest.mark.timeout(100)
@settings(max_examples=100)
@given(
    rng=st.randoms(use_true_random=False),
    lane=st.sampled_from([lane for lane in LANES if lane != "processes"]),
    workers=st.integers(1, 3),
    budget=st.integers(1, 1 << 20) | st.integers(1, 100),
)
def test_any_graph(rng: random.Random, lane: str, workers: int, budget: int) -> None:
    """Of any number of workers, with chunks of any size: a quarter of the budget, which is less than an item too."""
    graph = random_graph(rng)
    with Runtime(lane=lane, num_workers=workers, stream_buffer_bytes=budget, check=True) as rt:
        assert [plain(value) for value in rt.run(graph)] == one_by_one(graph)
