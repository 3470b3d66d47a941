"""What a user sees of a node: names of those DAGs alone that Airflow lets him read. Pure.

What is not named here is not shown: neither paths of logs and of copies, nor what errors say of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace_airflow.observe import Daemon, Store

_TASK: Final = ("id", "state", "pid", "since", "started", "waits_for", "cpus", "memory_bytes")
_DAEMON: Final = ("pid", "since", "drained", "limits", "memory", "schedulers", "supervisors")
_STORE: Final = ("objects", "memory_bytes", "budget_bytes", "spilled_bytes", "undurable", "failed")
_RUN: Final = ("dag_id", "run_id", "objects", "memory_bytes", "file_bytes", "copied_bytes", "not_copied", "readers")


@dataclass(frozen=True, slots=True)
class Sight:
    """What a user may read.

    Args:
        dags: the ids of DAGs.
        files: bundle and path of the files that they stand in.
    """

    dags: Collection[str]
    files: Collection[tuple[str, str]]


def daemon(found: Daemon, sight: Sight) -> dict[str, Any]:
    """A daemon; tasks of other DAGs have no name, and their files neither."""
    seen: dict[str, Any] = {"team": found.team, "state": found.state}
    if (status := found.status) is None:
        return seen
    seen |= _of(status, _DAEMON)
    seen["tasks"] = [
        {**_of(task, _TASK), "name": task["name"] if task["dag_id"] in sight.dags else None} for task in status["tasks"]
    ]
    seen["zygotes"] = [_zygote(zygote, sight) for zygote in status["zygotes"]]
    return seen


def _zygote(zygote: Mapping[str, Any], sight: Sight) -> dict[str, Any]:
    if zygote["file"] is None:
        return {"pid": zygote["pid"], "state": "bare", "file": None, "unfit": ""}
    bundle, version, path = zygote["file"]
    state = "unfit" if zygote["unfit"] else "ready" if zygote["sources"] else "parsing"
    may_read = (bundle, path) in sight.files
    return {
        "pid": zygote["pid"],
        "state": state,
        "file": " ".join(filter(None, (bundle, version, path))) if may_read else None,
        "unfit": zygote["unfit"] if may_read else "",
    }


def store(found: Store | None, sight: Sight) -> dict[str, Any] | None:
    """The store, with what it holds for the runs of readable DAGs."""
    if found is None:
        return None
    seen: dict[str, Any] = {"state": found.state, **_of(found.status or {}, _STORE)}
    seen["runs"] = [{name: getattr(usage, name) for name in _RUN} for usage in found.runs if usage.dag_id in sight.dags]
    return seen


def _of(found: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}
