"""What observers may ask of this node: what its daemons do, and what its XCom store holds.

Nothing is started and nothing is changed (but that the folder is made where a daemon would listen), and a peer that
has not answered within 2 s is reported as silent. Runs where Airflow's configuration is at hand, so in the API server
and on the command line.
"""

from __future__ import annotations

import contextlib
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from airflow.configuration import conf
from airflow.executors.executor_loader import ExecutorLoader

from headrace.errors import ConfigError
from headrace_airflow import client, xcom
from headrace_airflow.executor import HeadraceExecutor
from headrace_airflow.store.home import Home
from headrace_airflow.store.report import RunUsage, by_run
from headrace_airflow.wire import Channel, Message

State = Literal["running", "silent", "absent", "foreign"]
"""``silent``: it is there and does not answer; ``foreign``: it is another user's."""

_TIMEOUT_S: Final = 2.0
"""For all that one peer is asked; the page relies on it (headrace_plugins.page.shared)."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """The daemon of one of this deployment's Headrace executors; ``status`` is there if it answers."""

    team: str | None
    state: State
    status: Message | None


@dataclass(frozen=True, slots=True)
class Store:
    """The store of XComs; ``status`` is there if it answers."""

    state: State
    status: Message | None
    runs: list[RunUsage]


def daemons() -> list[Daemon]:
    """This node's daemons, one for each team's executor; none where HeadraceExecutor is not configured.

    All are asked at the same time: one that is silent makes nobody wait for the others.
    """
    executors = _executors()
    if not executors:
        return []
    deadline = time.monotonic() + _TIMEOUT_S
    with ThreadPoolExecutor(len(executors), "headrace-observe") as asking:
        return list(asking.map(lambda executor: _daemon(executor, deadline), executors))


def store() -> Store | None:
    """This node's store; ``None`` where HeadraceXCom is not configured."""
    if not issubclass(conf.getimport("core", "xcom_backend"), xcom.HeadraceXCom):
        return None
    deadline = time.monotonic() + _TIMEOUT_S
    base = xcom.settings().home
    try:
        sock = Home(base).connect(waits=False) if Path(base).is_dir() else None  # a home makes its folder
    except PermissionError:
        return Store("foreign", None, [])
    except BlockingIOError:
        return Store("silent", None, [])
    if sock is None:
        return Store("absent", None, [])
    with contextlib.closing(Channel(sock)) as channel:
        status = client.ask(channel, {"op": "status"}, _left_s(deadline))
        objects = client.ask(channel, {"op": "list"}, _left_s(deadline)) if status else None
    if status is None or objects is None:
        return Store("silent", None, [])
    return Store("running", status, by_run(objects["objects"]))


@functools.cache
def _executors() -> list[HeadraceExecutor]:
    return [executor for executor in ExecutorLoader.init_executors() if isinstance(executor, HeadraceExecutor)]


def _daemon(executor: HeadraceExecutor, deadline: float) -> Daemon:
    try:
        channel = client.connect(executor.place, "observer", _left_s(deadline))
    except (ConfigError, PermissionError):
        return Daemon(executor.team_name, "foreign", None)
    if channel is None:
        return Daemon(executor.team_name, "silent" if client.running(executor.place) else "absent", None)
    with contextlib.closing(channel):
        status = client.ask(channel, {"t": "status"}, _left_s(deadline))
    return Daemon(executor.team_name, "running" if status else "silent", status)


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
