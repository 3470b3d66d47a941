"""The schedulers that are compared: how each is imported, started and asked. Runs in the child process of each.

Stock ones are started as their documentation says, with their defaults, and left as they are: threads of BLAS and
everything else come from the user's environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

STOCK = ("sync", "threads", "processes", "distributed")
PEERS = ("ray",)
LANES = ("auto", "inline", "threads", "processes")
HEADRACE = tuple(f"headrace:{lane}" for lane in LANES)
AUTO = "headrace:auto"
HAVE_STARTUP = ("processes", "distributed", "ray", AUTO, "headrace:processes")
"""Those for which it matters whether workers are up yet."""


@dataclass(slots=True)
class Opened:
    """A scheduler that is ready.

    Args:
        scheduler: what ``dask.compute(scheduler=...)`` gets.
        get: called as ``get(dsk, keys)`` for a raw graph.
        close: ends what was started.
    """

    scheduler: Any
    get: Callable[..., Any]
    close: Callable[[], None] = field(default=lambda: None)


def module_of(name: str) -> str:
    """The module whose import makes this scheduler known. What a user's program imports for it, and no more."""
    if name.startswith("headrace:"):
        return "headrace_dask"
    modules = {
        "sync": "dask.local",
        "threads": "dask.threaded",
        "processes": "dask.multiprocessing",
        "ray": "ray.util.dask",
    }
    return modules.get(name, name.partition(":")[0])


def is_installed(name: str) -> bool:
    """True for whatever is named by ``module:function``: only the child can tell, which sees the current folder."""
    if name not in (*STOCK, *PEERS, *HEADRACE):
        return True
    return find_spec(module_of(name).partition(".")[0]) is not None


def is_known(name: str) -> bool:
    """The built-in names, and ``module:attribute`` for any other function that is called as ``get(dsk, keys)``."""
    return name in (*STOCK, *PEERS, *HEADRACE) or (":" in name and not name.startswith("headrace:"))


def open_scheduler(name: str) -> Opened:
    """Starts it; its module is imported already. Blocks until it can take work, as its own documentation waits."""
    if name in ("sync", "threads", "processes"):
        module = import_module(module_of(name))
        return Opened(name, module.get_sync if name == "sync" else module.get)
    if name == "distributed":
        return _open_distributed()
    if name == "ray":
        return _open_ray()
    if name.startswith("headrace:"):
        return _open_headrace(name.partition(":")[2])
    module_name, _, attribute = name.partition(":")
    get = getattr(import_module(module_name), attribute)
    return Opened(get, get)


def _open_distributed() -> Opened:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(processes=True)
    client = Client(cluster)

    def close() -> None:
        client.close()
        cluster.close()

    return Opened(client, client.get, close)


def _open_ray() -> Opened:
    import ray
    from ray.util.dask import ray_dask_get

    ray.init(include_dashboard=False)
    return Opened(ray_dask_get, ray_dask_get, ray.shutdown)


def _open_headrace(lane: str) -> Opened:
    import dask

    import headrace_dask

    dask.config.set({"headrace.lane": lane})
    return Opened(headrace_dask.get, headrace_dask.get)
