"""What a store holds, by DAG run, for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace_airflow.xcom_reference import readable_size


@dataclass(slots=True)
class RunUsage:
    """What is held for one DAG run. An object counts in ``memory``, in ``file`` or in neither, and among the copies."""

    dag_id: str
    run_id: str
    objects: int = 0
    memory_bytes: int = 0
    file_bytes: int = 0
    copied_bytes: int = 0
    not_copied: int = 0
    """Objects without a durable copy: their write waits, or failed."""
    readers: int = 0


def by_run(objects: Iterable[Mapping[str, Any]]) -> list[RunUsage]:
    """The usage of each run, the largest first.

    Args:
        objects: as the service's ``list`` has them.
    """
    runs: dict[tuple[str, str], RunUsage] = {}
    for found in objects:
        dag_id, run_id = found["slot"][:2]
        usage = runs.setdefault((dag_id, run_id), RunUsage(dag_id, run_id))
        usage.objects += 1
        usage.memory_bytes += found["size"] if found["place"] == "memory" else 0
        usage.file_bytes += found["size"] if found["place"] == "file" else 0
        usage.copied_bytes += found["size"] if found["durable"] == "kept" else 0
        usage.not_copied += found["durable"] != "kept"
        usage.readers += found["readers"]
    return sorted(runs.values(), key=lambda usage: (-usage.memory_bytes - usage.file_bytes, -usage.copied_bytes))


def render(status: Mapping[str, Any] | None, runs: list[RunUsage]) -> str:
    """A table, with a line about the store as a whole before it."""
    lines = ["No store service is at work on this node: nothing is in memory."]
    if status is not None:
        lines = [
            f"Store service {status['pid']}: {readable_size(status['memory_bytes'])} of "
            f"{readable_size(status['budget_bytes'])} in memory, {readable_size(status['spilled_bytes'])} in files, "
            f"{status['objects']} values; durable copies in {status['url']}"
        ]
        if status["reasons"]:
            lines.append(f"{status['failed']} copies could not be made: {'; '.join(status['reasons'])}")
    rows = [("DAG", "run", "values", "in memory", "in files", "copied", "not copied", "being read")]
    rows += [
        (
            usage.dag_id, usage.run_id, str(usage.objects), readable_size(usage.memory_bytes),
            readable_size(usage.file_bytes), readable_size(usage.copied_bytes), str(usage.not_copied),
            str(usage.readers),
        )
        for usage in runs
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines if runs else lines[: len(lines) - 1])
