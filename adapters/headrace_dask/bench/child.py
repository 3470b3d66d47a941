"""The process in which one scheduler runs its workloads. It is told what to do over a socket, a line of JSON at a time.

    {"op": "start", "scheduler": name, "module": name}      → import_s (what it takes beyond dask itself), start_s
    {"op": "load", "workload": name | graph}    → {}                prepares data, imports what building needs
    {"op": "build"}                             → {}
    {"op": "run"}                               → seconds, digest   the result is dropped afterwards
    {"op": "optimise"}                          → seconds, tasks    what dask takes before it calls a scheduler
    {"op": "first"}                             → seconds           a graph of ten tasks, the first after the start
    {"op": "close"}                             → {}                ends the scheduler; the process ends after it

Every reply may instead be ``{"error": text}``. Nothing else is written to the socket; what tasks print goes to the log.
The driver runs this as ``headrace_bench.child``, and Headrace is imported only when it is the scheduler: so its import
can be timed, and stock schedulers and their workers are processes that know nothing of it.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import traceback
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .schedulers import Opened
    from .workloads import Workload


class Child:
    """Holds the scheduler, the workload that is on, and what was built of it."""

    def __init__(self) -> None:
        self.opened: Opened | None = None
        self.workload: Workload | None = None
        self.built: Any = None

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request.pop("op")
        try:
            reply: dict[str, Any] = getattr(self, f"do_{op}")(**request)
            return reply
        except BaseException as error:  # a task may raise anything, SystemExit included
            traceback.print_exc()
            return {"error": _one_line(error)}
        finally:
            if op != "build":
                self.built = None
                gc.collect()

    def do_start(self, scheduler: str, module: str) -> dict[str, Any]:
        import dask  # noqa: F401  what a scheduler costs is counted from here

        began = perf_counter()
        import_module(module)
        import_s = perf_counter() - began

        from .schedulers import open_scheduler

        began = perf_counter()
        self.opened = open_scheduler(scheduler)
        return {"import_s": import_s, "start_s": perf_counter() - began}

    def do_load(self, workload: str, graph: bool = False) -> dict[str, Any]:
        from .workloads import own_graph, select

        self.workload = own_graph(workload) if graph else select([workload])[0]
        if self.workload.prepare is not None:
            self.workload.prepare()
        return {}

    def do_build(self) -> dict[str, Any]:
        assert self.workload is not None
        self.built = self.workload.build()
        gc.collect()
        return {}

    def do_run(self) -> dict[str, Any]:
        from .digest import digest

        assert self.workload is not None
        began = perf_counter()
        result = self._compute()
        seconds = perf_counter() - began
        if self.workload.normalise is not None:
            result = self.workload.normalise(result)
        return {"seconds": seconds, "digest": digest(result, exact=self.workload.rtol == 0)}

    def do_optimise(self) -> dict[str, Any]:
        from .workloads import RawGraph

        if isinstance(self.built, RawGraph):
            return {"seconds": 0.0, "tasks": len(self.built.dsk)}
        import dask

        seen: list[tuple[float, int]] = []

        def catch(dsk: Any, keys: Any, **options: Any) -> Any:
            graph = dsk if isinstance(dsk, dict) else dict(dsk.__dask_graph__())
            seen.append((perf_counter(), len(graph)))
            raise _Caught

        began = perf_counter()
        try:
            dask.compute(self.built, scheduler=catch)
        except _Caught:
            pass
        return {"seconds": seen[0][0] - began, "tasks": seen[0][1]} if seen else {"seconds": 0.0, "tasks": 0}

    def do_first(self) -> dict[str, Any]:
        from .tasks import small_graph

        assert self.opened is not None
        dsk, keys, expected = small_graph()
        began = perf_counter()
        result = self.opened.get(dsk, keys)
        seconds = perf_counter() - began
        if tuple(result) != expected:
            raise AssertionError(f"the small graph gave {result!r} instead of {expected!r}")
        return {"seconds": seconds}

    def do_close(self) -> dict[str, Any]:
        if self.opened is not None:
            self.opened.close()
        return {}

    def _compute(self) -> Any:
        from .workloads import RawGraph

        assert self.opened is not None
        if isinstance(self.built, RawGraph):
            return self.opened.get(self.built.dsk, self.built.keys)
        import dask

        return dask.compute(self.built, scheduler=self.opened.scheduler)[0]


class _Caught(BaseException):
    pass


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def main(descriptor: int) -> None:
    """Serves requests until it is told to close, or the driver is gone."""
    os.set_inheritable(descriptor, False)  # or the driver would not notice this process's end while its workers live
    child = Child()
    with socket.socket(fileno=descriptor) as link, link.makefile("rw") as lines:
        for line in lines:
            request = json.loads(line)
            closing = request["op"] == "close"
            reply = child.handle(request)
            sys.stdout.flush()
            lines.write(json.dumps(reply) + "\n")
            lines.flush()
            if closing:
                return
