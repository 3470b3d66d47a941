"""A timeline of what runs: recorded in this process while somebody asks for it, written as a trace or a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Record = tuple[Any, str, float, float]
"""(key, name of the thread or worker that ran it, start, duration); seconds on the machine-wide monotonic clock."""

recorders: list[list[Record]] = []
"""The timelines being recorded now. Empty nearly always, so that asking costs nothing."""


def record(entries: Iterable[Record]) -> None:
    """Adds finished tasks to every timeline that is being recorded."""
    entries = list(entries)
    for recorder in recorders:
        recorder.extend(entries)


@contextmanager
def trace(path: str | os.PathLike[str]) -> Iterator[list[Record]]:
    """Records every task that any runtime of this process finishes meanwhile, and writes a timeline on leaving.

    May be nested, and used in several threads at once: each timeline has the tasks of all threads.

    Args:
        path: ``.json`` writes a trace that Perfetto and ``chrome://tracing`` open; ``.png``, ``.svg`` and ``.pdf`` a
            picture (needs matplotlib). What is there already is overwritten.

    Yields:
        What has been recorded so far, a :data:`Record` a task.

    Raises:
        ValueError: any other suffix; at once, before anything runs.
        ImportError: a picture is wanted, and matplotlib is not there; likewise.
        OSError: the file cannot be written; on leaving.
    """
    target = Path(path)
    if target.suffix not in (".json", ".png", ".svg", ".pdf"):
        raise ValueError(f"a trace is written as .json, .png, .svg or .pdf, not {target.name!r}")
    if target.suffix != ".json" and find_spec("matplotlib") is None:  # asked now, and not after what may take hours
        raise ImportError(f"a timeline as {target.suffix} needs matplotlib; write .json, or install matplotlib")
    entries: list[Record] = []
    recorders.append(entries)
    try:
        yield entries
    finally:
        # By identity: two timelines with equal entries are still two.
        recorders[:] = [recorder for recorder in recorders if recorder is not entries]
        if target.suffix == ".json":
            target.write_text(json.dumps(_chrome(entries)))
        else:
            _draw(entries, target)


def _group(key: Any) -> str:
    name = key[0] if isinstance(key, tuple) and key else key
    return str(name).rsplit("-", 1)[0]


def _chrome(entries: list[Record]) -> dict[str, Any]:
    places = {place: number for number, place in enumerate(sorted({entry[1] for entry in entries}), 1)}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": place}}
        for place, number in places.items()
    ]
    events += [
        {
            "ph": "X",
            "name": _group(key),
            "cat": "task",
            "pid": 1,
            "tid": places[place],
            "ts": start * 1e6,
            "dur": duration * 1e6,
            "args": {"key": str(key)},
        }
        for key, place, start, duration in entries
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _draw(entries: list[Record], target: Path) -> None:
    from matplotlib.figure import Figure

    places = sorted({entry[1] for entry in entries})
    groups = sorted({_group(entry[0]) for entry in entries})
    first = min((entry[2] for entry in entries), default=0.0)
    figure = Figure(figsize=(12, 1.5 + 0.4 * len(places)), layout="constrained")
    axes = figure.subplots()
    for number, group in enumerate(groups):
        spans: dict[str, list[tuple[float, float]]] = {}
        for key, place, start, duration in entries:
            if _group(key) == group:
                spans.setdefault(place, []).append((start - first, duration))
        for place, bars in spans.items():
            label = group if place == min(spans) and number < 20 else None
            axes.broken_barh(bars, (places.index(place) - 0.4, 0.8), facecolors=f"C{number % 10}", label=label)
    axes.set_yticks(range(len(places)), places)
    axes.set_xlabel("seconds")
    if groups:
        figure.legend(loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(target, dpi=120)
