"""The driver: a process for each scheduler, repeats interleaved over them, whatever fails shown and left behind.

Invariants: at any time only one child computes; a scheduler that failed on a workload or exceeded the bound is not run
on it again, and goes on with the next workload in a new process; memory is only looked at in runs that are not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import Any

from headrace.observe.conditions import describe_machine, describe_versions
from headrace_dask.bench.digest import Digest, compare
from headrace_dask.bench.others import OthersMeter
from headrace_dask.bench.process import SAMPLE_S, BoundExceeded, ChildFailed, ChildProcess
from headrace_dask.bench.records import Cell, Report, StartRecord, WorkloadRecord
from headrace_dask.bench.schedulers import HAVE_STARTUP, is_installed, module_of
from headrace_dask.bench.workloads import Workload

PACKAGES = ("headrace", "dask", "distributed", "ray", "numpy", "pandas", "pyarrow", "scipy", "scikit-learn", "xarray")
"""What the figures depend on."""
PREPARE_LIMIT_S = 300.0
START_LIMIT_S = 60.0
WATCHED_S = 1.5
"""So long the memory of a workload is looked at, in one run or several."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Args:
        schedulers: by name, in the order of the columns.
        workloads: in the order of the rows.
        own: the workloads are users' graphs, to be found by ``module:function``.
        repeats: how often each is run after its first run.
        bound_s: seconds for one run; more is shown as exceeded.
        memory: names of the workloads whose memory is measured.
        starts: how many fresh processes show each scheduler's start; 0: none.
        hopeless_s, hopeless_times: a first run that took this long, and this many times the fastest one, is not
            repeated: its median would tell no more.
        budget_s: for all workloads together. One that is behind an even pace towards it gets one repeat and no memory
            figure, so that an abridged run stays short on a slow or busy machine.
    """

    schedulers: Sequence[str]
    workloads: Sequence[Workload]
    own: bool = False
    repeats: int = 5
    bound_s: float = 60.0
    memory: frozenset[str] = frozenset()
    starts: int = 3
    hopeless_s: float = 3.0
    hopeless_times: float = 10.0
    budget_s: float = float("inf")


@dataclass(slots=True)
class Listener:
    """What wants to know how far the benchmark is; every callback may be left out."""

    now: Callable[[str], None] = lambda text: None
    row: Callable[[WorkloadRecord], None] = lambda record: None


@dataclass(slots=True)
class Reference:
    """The result that the others are compared with: that of the first scheduler that had one."""

    rtol: float
    scheduler: str = ""
    digest: Digest | None = None

    def judge(self, scheduler: str, digest: Digest) -> str:
        if self.digest is None:
            self.scheduler, self.digest = scheduler, digest
        return compare(self.digest, digest, self.rtol)


@dataclass(slots=True)
class Runner:
    """Runs a plan. Children live from their first workload to the end; :meth:`run` leaves none behind."""

    plan: Plan
    listener: Listener = field(default_factory=Listener)
    _children: dict[str, ChildProcess] = field(default_factory=dict)
    _unusable: dict[str, Cell] = field(default_factory=dict)
    _began_s: float = 0.0

    def run(self) -> Report:
        self._began_s, others = perf_counter(), OthersMeter()
        plan = self.plan
        options = {"repeats": plan.repeats, "bound_s": plan.bound_s, "starts": plan.starts}
        report = Report(describe_machine(), describe_versions(PACKAGES), options, list(plan.schedulers))
        for scheduler in plan.schedulers:
            if not is_installed(scheduler):
                self._unusable[scheduler] = Cell("missing", error=f"{module_of(scheduler)} is not installed")
        try:
            for workload in plan.workloads:
                report.workloads[workload.name] = self._workload(workload)
                self.listener.row(report.workloads[workload.name])
            self._close_all()
            report.starts = self._measure_starts()
            report.took_s = perf_counter() - self._began_s
            report.machine["busy_with_others"] = others.share()
        finally:
            for child in self._children.values():
                child.kill()
        return report

    # --- one workload

    def _workload(self, workload: Workload) -> WorkloadRecord:
        record = WorkloadRecord(workload.name, workload.title)
        missing = [module for module in workload.requires if find_spec(module) is None]
        if missing:
            cell = Cell("missing", error=f"{', '.join(missing)} is not installed")
            record.cells = dict.fromkeys(self.plan.schedulers, cell)
            return record
        record.cells = {name: self._unusable.get(name) or Cell() for name in self.plan.schedulers}
        reference = Reference(workload.rtol)
        for repeat in range(self.plan.repeats + 1):
            if repeat > 1 and self._is_late(workload):
                break
            for scheduler in self._still_on(record, repeat):
                self.listener.now(f"{workload.name}: {scheduler}, {f'repeat {repeat}' if repeat else 'first run'}")
                self._run_once(workload, scheduler, record, reference, repeat)
        record.reference = reference.scheduler
        self._ask_dasks_share(record)
        if workload.name in self.plan.memory and not self._is_late(workload):
            self._measure_memory(workload, record)
        return record

    def _is_late(self, workload: Workload) -> bool:
        """True if the workloads up to this one have used more than their part of the budget."""
        part = (self.plan.workloads.index(workload) + 1) / len(self.plan.workloads)
        return perf_counter() - self._began_s > part * self.plan.budget_s

    def _still_on(self, record: WorkloadRecord, repeat: int) -> list[str]:
        usable = {name: cell for name, cell in record.cells.items() if cell.status == "ok"}
        if repeat == 0:
            return list(usable)
        fastest_s = min((cell.first_s for cell in usable.values()), default=0.0)
        limit_s = max(self.plan.hopeless_s, self.plan.hopeless_times * fastest_s)
        return [name for name, cell in usable.items() if cell.first_s <= limit_s]

    def _run_once(
        self, workload: Workload, scheduler: str, record: WorkloadRecord, reference: Reference, repeat: int
    ) -> None:
        cell = record.cells[scheduler]
        try:
            child = self._child(scheduler)
            if repeat == 0:
                self._load(child, workload)
            child.request("build", limit_s=PREPARE_LIMIT_S)
            reply = child.request("run", limit_s=self.plan.bound_s)
        except ChildFailed as failure:
            cell.status = "timeout" if isinstance(failure, BoundExceeded) else "failed"
            cell.error = str(failure)
            self._discard(scheduler)
            return
        if repeat == 0:
            cell.first_s = reply["seconds"]
        else:
            cell.seconds.append(reply["seconds"])
        verdict = reference.judge(scheduler, reply["digest"])
        if verdict == "different":
            cell.error = f"its result differs from that of {reference.scheduler}"
        cell.equality = max(cell.equality, verdict, key=("", "equal", "close", "different").index)

    def _ask_dasks_share(self, record: WorkloadRecord) -> None:
        """What dask itself does before it calls any scheduler; asked of the one whose result is the reference."""
        child = self._children.get(record.reference)
        if child is None:
            return
        try:
            child.request("build", limit_s=PREPARE_LIMIT_S)
            reply = child.request("optimise", limit_s=PREPARE_LIMIT_S)
        except ChildFailed:
            self._discard(record.reference)
        else:
            record.tasks, record.optimise_s = reply["tasks"], reply["seconds"]

    def _measure_memory(self, workload: Workload, record: WorkloadRecord) -> None:
        """Peak memory in processes of their own, in which nothing else has run before. A short workload runs again and
        again: in one run of it the peak would be seen by chance only."""
        for scheduler, cell in record.cells.items():
            if not cell.counts:
                continue
            self.listener.now(f"{workload.name}: {scheduler}, memory")
            with ChildProcess() as child:
                try:
                    self._start(child, scheduler)
                    self._load(child, workload)
                    watched_s = 0.0
                    while watched_s < WATCHED_S:
                        child.request("build", limit_s=PREPARE_LIMIT_S)
                        ran = child.request("run", limit_s=2 * self.plan.bound_s, sample=True)
                        watched_s += max(ran["seconds"], SAMPLE_S)
                    cell.peak_bytes = child.peak_bytes
                except ChildFailed as failure:
                    cell.error = f"no memory figure: {failure}"
                else:
                    child.close()

    # --- how schedulers start

    def _measure_starts(self) -> dict[str, StartRecord]:
        if not self.plan.starts:
            return {}
        schedulers = [name for name in self.plan.schedulers if name not in self._unusable]
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in schedulers}
        records = {name: StartRecord() for name in schedulers}
        for number in range(self.plan.starts):
            for name in schedulers:
                self.listener.now(f"start {number + 1} of {self.plan.starts}: {name}")
                try:
                    samples[name].append(self._start_once(name))
                except ChildFailed as failure:
                    records[name].error = str(failure)
        for name, taken in samples.items():
            for figure in taken[0] if taken else ():
                setattr(records[name], figure, median(sample[figure] for sample in taken))
        return records

    def _start_once(self, scheduler: str) -> dict[str, float]:
        with ChildProcess() as child:
            sample = self._start(child, scheduler)
            sample["first_s"] = child.request("first", limit_s=START_LIMIT_S)["seconds"]
            child.close()
        return sample | {"python_s": self._cold_python(scheduler)}

    def _cold_python(self, scheduler: str) -> float:
        """400 tasks of pure Python as the first thing that a process does; the start of a cluster is in it."""
        with ChildProcess() as child:
            start_s = self._start(child, scheduler)["start_s"]
            child.request("load", workload="python400", limit_s=PREPARE_LIMIT_S)
            child.request("build", limit_s=PREPARE_LIMIT_S)
            run_s: float = child.request("run", limit_s=self.plan.bound_s)["seconds"]
            child.close()
        return run_s + (start_s if scheduler in HAVE_STARTUP else 0.0)

    # --- children

    def _child(self, scheduler: str) -> ChildProcess:
        child = self._children.get(scheduler)
        if child is None:
            child = self._children[scheduler] = ChildProcess()
            try:
                self._start(child, scheduler)
            except ChildFailed as failure:
                self._unusable[scheduler] = Cell("failed", error=f"does not start: {failure}")
                raise ChildFailed(self._unusable[scheduler].error) from failure
        return child

    def _start(self, child: ChildProcess, scheduler: str) -> dict[str, Any]:
        return child.request("start", scheduler=scheduler, module=module_of(scheduler), limit_s=START_LIMIT_S)

    def _load(self, child: ChildProcess, workload: Workload) -> None:
        child.request("load", workload=workload.name, graph=self.plan.own, limit_s=PREPARE_LIMIT_S)

    def _discard(self, scheduler: str) -> None:
        child = self._children.pop(scheduler, None)
        if child is not None:
            child.kill()

    def _close_all(self) -> None:
        while self._children:
            _, child = self._children.popitem()
            child.close()
