"""Random graphs of stages end, and give what they give one stage after the other: no hang, no leak.

``HEADRACE_STREAM_GRAPHS=10000`` makes it so many; a graph that fails is run again by its seed.
"""

from __future__ import annotations

import os
import random

import pytest
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
