"""From options to a plan: which schedulers, which workloads, how thoroughly."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from headrace_dask.bench.runner import Plan
from headrace_dask.bench.schedulers import AUTO, LANES, PEERS, STOCK, is_installed, is_known
from headrace_dask.bench.workloads import QUICK, Workload, own_graph, select

QUICK_BUDGET_S = 130.0
"""Leaves some of three minutes for the measurement of starts."""
QUICK_MEMORY = frozenset({"arrays16"})
SOME_MEMORY = QUICK_MEMORY | {"array400mb", "flights", "matmul", "shuffle20", "joins", "images"}


def make_plan(options: argparse.Namespace) -> Plan:
    """Raises LookupError for names that are not known."""
    own = bool(options.graph)
    workloads = [own_graph(name) for name in options.graph] or select(
        options.workloads or (QUICK if options.quick else ())
    )
    return Plan(
        schedulers=_schedulers(options),
        workloads=workloads,
        own=own,
        repeats=options.repeats if options.repeats is not None else 3 if options.quick else 5,
        bound_s=options.bound or (15.0 if options.quick else 60.0),
        memory=_memory(options, workloads),
        starts=0 if own else 1 if options.quick else 5,
        hopeless_s=1.0 if options.quick else 3.0,
        hopeless_times=2.0 if options.quick else 10.0,
        budget_s=QUICK_BUDGET_S if options.quick else float("inf"),
    )


def _schedulers(options: argparse.Namespace) -> list[str]:
    """Those named; else the stock ones and the installed peers. Headrace comes last, auto first."""
    others = options.schedulers
    if others is None:
        others = [*STOCK, *filter(is_installed, PEERS)]
    lanes = options.lanes
    if lanes is None:
        lanes = ["auto"] if options.quick else list(LANES)
    wanted = dict.fromkeys([*others, *(f"headrace:{lane}" for lane in lanes)])
    wanted = dict.fromkeys(AUTO if name == "headrace" else name for name in wanted)
    unknown = [name for name in wanted if not is_known(name)]
    if unknown:
        raise LookupError(
            f"unknown scheduler {', '.join(unknown)}; known: {', '.join((*STOCK, *PEERS))}, module:function"
        )
    return list(wanted)


def _memory(options: argparse.Namespace, workloads: Sequence[Workload]) -> frozenset[str]:
    names = frozenset(workload.name for workload in workloads)
    which = options.memory or ("all" if options.graph else "some")
    if which == "none":
        return frozenset()
    if which == "all":
        return names
    return names & (QUICK_MEMORY if options.quick else SOME_MEMORY)
