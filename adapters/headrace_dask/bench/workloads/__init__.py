"""The suite: the workloads by name, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from .base import RawGraph, Workload

MODULES = ("graphs", "collections", "science", "tables", "learning", "flights")
PEERS = (
    "inc10k", "chain2k", "tree4k", "python400", "arrays16", "array400mb",
    "matmul", "rechunk", "wordcount", "groupby40", "shuffle20",
)  # fmt: skip
QUICK = ("inc10k", "tree4k", "python400", "arrays16", "wordcount", "groupby40", "images", "text", "flights")


def suite() -> dict[str, Workload]:
    """Every workload by name. Imports numpy and pandas; dask's collections only when one is built."""
    modules = [import_module(f"{__name__}.{module}") for module in MODULES]
    return {workload.name: workload for module in modules for workload in module.WORKLOADS}


def select(names: Sequence[str]) -> list[Workload]:
    """The named workloads, in the order given; all of them when none is named.

    Raises:
        LookupError: a name is not in the suite.
    """
    known = suite()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise LookupError(f"unknown workload {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name] for name in names or known]


def own_graph(target: str) -> Workload:
    """A user's graph as a workload.

    Args:
        target: ``module:function``. The function takes no arguments and returns a dask collection, a tuple or list of
            collections, or ``(dsk, keys)``. It is imported when it is first built, and called anew for every run.

    Raises:
        LookupError: the target has another form.
    """
    if not all(target.partition(":")):
        raise LookupError(f"a graph is named as module:function, not {target!r}")

    def build() -> Any:
        from dask.base import is_dask_collection

        module, _, function = target.partition(":")
        made = getattr(import_module(module), function)()
        if not isinstance(made, tuple) or len(made) != 2:
            return made
        is_graph = isinstance(made[0], Mapping) and not is_dask_collection(made[0])  # xarray's Dataset is both
        return RawGraph(*made) if is_graph else made

    # Unlike the suite's, nothing is known of this result: rounding may differ with the number of threads that BLAS has.
    return Workload(target, target, build, rtol=1e-8)


__all__ = ["PEERS", "QUICK", "RawGraph", "Workload", "own_graph", "select", "suite"]
