"""What a workload is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class RawGraph(NamedTuple):
    """A graph as ``scheduler.get(dsk, keys)`` takes it: no collection, no optimisation by dask."""

    dsk: Mapping[Hashable, Any]
    keys: Any


@dataclass(frozen=True, slots=True)
class Workload:
    """One thing that users do with dask.

    Args:
        name: what is typed after ``--workloads``.
        title: what is shown to a reader.
        build: makes the collection, a tuple of collections, or a :class:`RawGraph`. Called in the process of each
            scheduler, once a run, outside the timed part. All data are seeded: each build gives equal results.
        rtol: 0 where stock schedulers agree bit by bit, so results must be identical; otherwise the largest relative
            difference that counts as equal, with the reason in a comment where it is set.
        normalise: applied to the computed result before it is compared; gives rows an order where none is
            promised.
        requires: modules without which the workload is skipped.
        prepare: makes files or data that all schedulers read; called in each process before the first build.
    """

    name: str
    title: str
    build: Callable[[], Any]
    rtol: float = 0.0
    normalise: Callable[[Any], Any] | None = None
    requires: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None
