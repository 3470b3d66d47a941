"""Settings: one frozen object, read once at the top and handed down; nothing below reads the environment.

Precedence, first found wins: arguments, environment (``HEADRACE_*``), an overlay that an adapter hands in
(``headrace.*`` of the dask config), defaults. The section ``[headrace]`` of Airflow's configuration is another matter:
it has the settings of a node's daemon and store (:mod:`headrace_airflow.settings`).
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from headrace import cgroups
from headrace.errors import ConfigError

Lane = Literal["auto", "inline", "threads", "processes"]
LANES: tuple[Lane, ...] = get_args(Lane)


def lane_named(name: object) -> Lane:
    """The lane of this name, however its letters are written.

    Raises:
        ConfigError: there is none.
    """
    for lane in LANES:
        if isinstance(name, str) and name.strip().lower() == lane:
            return lane
    raise ConfigError(f"lane must be one of {', '.join(LANES)}, not {name!r}")


def limit_of(number: Any) -> int | None:
    """How many tasks may run at once, from whatever is a whole number: numpy's are none of Python's.

    Raises:
        ConfigError: it is none, or below 0.
    """
    if number is None:
        return None
    try:
        limit = operator.index(number)
    except TypeError:
        limit = -1
    if limit < 0:
        raise ConfigError(f"num_workers, the limit of tasks at once, must be a whole number from 0, not {number!r}")
    return limit


def available_cores() -> int:
    """How many cores this process may use: its CPU affinity, capped by the quota of a cgroup."""
    cores = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(cores, cgroups.cores())))


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set.

    Args:
        lane: where tasks run. ``auto`` measures and decides; the others force one lane.
        num_workers: how many tasks run at once, over all lanes of this machine; default, or if 0: the cores available.
        inline_below_s: a family whose tasks are quicker than this runs inline.
        ahead_s: how many seconds of work are queued at a worker process beyond what it runs.
        small_bytes: a result up to this size rides in the message instead of shared memory.
        max_deaths: after how many worker deaths a task is given up.
        stream_buffer_bytes: so much of a stream is kept, and its producer may be so far ahead of the slowest consumer.
        idle_timeout_s: a worker process unused for this long is stopped.
        check: verify every invariant of the scheduler after every event (slow; for tests).

    Raises:
        ConfigError: a value cannot be used.
    """

    lane: Lane = "auto"
    num_workers: int = 0
    inline_below_s: float = 100e-6
    ahead_s: float = 0.03
    small_bytes: int = 32 * 1024
    max_deaths: int = 3
    stream_buffer_bytes: int = 256 * 1024 * 1024
    idle_timeout_s: float = 60.0
    check: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "lane", lane_named(self.lane))
        if self.num_workers == 0:
            object.__setattr__(self, "num_workers", available_cores())
        for name in ("num_workers", "max_deaths", "stream_buffer_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        for name in ("inline_below_s", "ahead_s", "small_bytes", "idle_timeout_s"):
            if not getattr(self, name) >= 0:  # so that NaN is refused too
                raise ConfigError(f"{name} must not be negative, not {getattr(self, name)!r}")


def resolve(
    arguments: Mapping[str, Any] | None = None,
    overlay: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Builds the settings from arguments, environment and an adapter's configuration, in this order.

    Args:
        arguments: values given in code; ``None`` values count as not given; an unknown name is an error.
        overlay: values from dask's configuration, with ``-`` or ``_`` in names; unknown names are errors.
        environ: the environment to read; ``os.environ`` by default.

    Raises:
        ConfigError: a name is unknown or a value cannot be used.
    """
    environ = os.environ if environ is None else environ
    if not isinstance(overlay or {}, Mapping):
        raise ConfigError(
            f"the settings of headrace must be names and values, like {{'lane': 'auto'}}, not {overlay!r}"
        )
    known = {field.name: field for field in dataclasses.fields(Settings)}
    found: dict[str, Any] = {}
    variables = {name: environ.get(f"HEADRACE_{name.upper()}") or None for name in known}
    sources: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("argument", arguments or {}),
        ("environment variable", variables),
        ("setting", {name.replace("-", "_"): value for name, value in (overlay or {}).items()}),
    )
    for source, values in sources:
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"unknown {source} {name!r}; known: {', '.join(sorted(known))}")
            if value is not None and name not in found:
                label = f"HEADRACE_{name.upper()}" if values is variables else name
                found[name] = _parse(source, label, known[name].default, value)
    return Settings(**found)


def _parse(source: str, name: str, default: object, value: object) -> object:
    kind = type(default)
    if kind is not str and (isinstance(value, kind) or (kind is float and isinstance(value, int))):
        return value
    try:
        return _READERS[kind](str(value).strip().lower())
    except (KeyError, ValueError):
        raise ConfigError(f"{source} {name} must be of type {kind.__name__}, not {value!r}") from None


_SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_READERS: Mapping[type, Callable[[str], object]] = {bool: _SWITCH.__getitem__, int: int, float: float, str: str}
