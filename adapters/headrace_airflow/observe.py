"""What observers may ask of this node: what its daemons do, and what its XCom store holds.

Nothing is started and nothing is changed (but that the folder is made where a daemon would listen), and every question
has a bounded time: a peer that does not answer is reported as silent. Runs where Airflow's configuration is at hand, so
in the API server and on the command line.
"""

from __future__ import annotations

import contextlib
import functools
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
    """This node's daemons, one for each team's executor; none where HeadraceExecutor is not configured."""
    return [_daemon(executor) for executor in _executors()]


def store() -> Store | None:
    """This node's store; ``None`` where HeadraceXCom is not configured."""
    if not issubclass(conf.getimport("core", "xcom_backend"), xcom.HeadraceXCom):
        return None
    base = xcom.settings().home
    try:
        sock = Home(base).connect() if Path(base).is_dir() else None  # a home makes its folder
    except PermissionError:
        return Store("foreign", None, [])
    if sock is None:
        return Store("absent", None, [])
    with contextlib.closing(Channel(sock)) as channel:
        status = client.ask(channel, {"op": "status"}, _TIMEOUT_S)
        objects = client.ask(channel, {"op": "list"}, _TIMEOUT_S) if status else None
    if status is None or objects is None:
        return Store("silent", None, [])
    return Store("running", status, by_run(objects["objects"]))


@functools.cache
def _executors() -> list[HeadraceExecutor]:
    return [executor for executor in ExecutorLoader.init_executors() if isinstance(executor, HeadraceExecutor)]


def _daemon(executor: HeadraceExecutor) -> Daemon:
    try:
        channel = client.connect(executor.place, "observer", _TIMEOUT_S)
    except (ConfigError, PermissionError):
        return Daemon(executor.team_name, "foreign", None)
    if channel is None:
        return Daemon(executor.team_name, "silent" if client.running(executor.place) else "absent", None)
    with contextlib.closing(channel):
        status = client.ask(channel, {"t": "status"}, _TIMEOUT_S)
    return Daemon(executor.team_name, "running" if status else "silent", status)
