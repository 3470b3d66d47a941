"""Settings of the executor and its node daemon: the section ``[headrace]`` of Airflow's configuration, read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace.config import available_cores
from headrace.errors import ConfigError
from headrace_airflow.memory import memory_limit_bytes, parse_bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set.

    Args:
        cpus: how much CPU tasks may use, measured or declared, before another one starts; default: half as much again
            as there are cores, because a task also waits for the API server.
        memory_bytes: how much memory tasks may declare; default: what the machine or its cgroup has.
        tasks: how many tasks run at once at most; default: ``[core] parallelism``.
        patience_s: a task that has waited so long for its DAG file to be parsed once for all parses it for itself.
        longest_wait_s: how long a task waits for others to leave it a cpu; after that it starts beside them.
        zygote_idle_s: a parsed DAG file unused for this long is let go.
        zygote_age_s: a parsed DAG file is held until the clock shows the next multiple of this, and parsed anew then:
            that long may what it takes from the clock be out of date. 0: as long as it is used.
        zygotes: how many parsed DAG files are held.
        linger_s: the daemon ends when it has had neither a scheduler nor a task for this long.
        close_gap: whether the scheduler is woken when a task ends or a run is asked for, instead of at the end of its
            idle sleep.
        at_end: what a scheduler that is told to end does with what runs: ``drain`` waits for it, as stock does;
            ``detach`` leaves it to the scheduler that comes next.
        share_pages: whether equal memory of tasks of one DAG file may be kept once, where the kernel does that.
        preload: whether numpy, pandas and the like, when a task imports them, are imported for later tasks, too.
        directory: where the daemon's socket is; default: a folder of the user's in the temporary directory.
    """

    cpus: float = 0.0
    memory_bytes: int = 0
    tasks: int = 32
    patience_s: float = 10.0
    longest_wait_s: float = 60.0
    zygote_idle_s: float = 300.0
    zygote_age_s: float = 300.0
    zygotes: int = 16
    linger_s: float = 60.0
    close_gap: bool = True
    at_end: str = "drain"
    share_pages: bool = True
    preload: bool = True
    directory: str = ""

    def __post_init__(self) -> None:
        if self.cpus == 0:
            object.__setattr__(self, "cpus", 1.5 * available_cores())
        if self.memory_bytes == 0:
            object.__setattr__(self, "memory_bytes", memory_limit_bytes())
        for option in ("cpus", "memory", "tasks", "zygotes"):
            if not (value := getattr(self, NAMES[option])) > 0:
                raise ConfigError(f"[headrace] {option} must be more than 0, not {value!r}")
        for option in ("patience", "longest_wait", "zygote_idle", "zygote_age", "linger"):
            if not (value := getattr(self, NAMES[option])) >= 0:
                raise ConfigError(f"[headrace] {option} must not be negative, not {value!r}")
        if self.at_end not in ("drain", "detach"):
            raise ConfigError(f"[headrace] at_end must be drain or detach, not {self.at_end!r}")


NAMES: Final = {
    "cpus": "cpus",
    "memory": "memory_bytes",
    "tasks": "tasks",
    "patience": "patience_s",
    "longest_wait": "longest_wait_s",
    "zygote_idle": "zygote_idle_s",
    "zygote_age": "zygote_age_s",
    "zygotes": "zygotes",
    "linger": "linger_s",
    "close_gap": "close_gap",
    "at_end": "at_end",
    "share_pages": "share_pages",
    "preload": "preload",
    "directory": "directory",
}
"""What each field is called in the configuration: there, units stand in the values, or are seconds."""


def resolve(section: Mapping[str, Any] | None, parallelism: int) -> Settings:
    """Builds the settings.

    Args:
        section: ``[headrace]`` of Airflow's configuration; names that the XCom backend reads are left alone.
        parallelism: ``[core] parallelism``.

    Raises:
        ConfigError: a value cannot be used.
    """
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    found: dict[str, Any] = {"tasks": parallelism}
    for name, value in (section or {}).items():
        if (known := NAMES.get(name)) and value not in (None, ""):
            found[known] = _parse(name, kinds[known], value)
    return Settings(**found)


def _parse(name: str, kind: type, value: Any) -> Any:
    try:
        if name == "memory":
            return parse_bytes(value)
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[str(value).strip().lower()]
        return kind(value)
    except (KeyError, ValueError):
        wanted = "a size like 4GiB" if name == "memory" else f"of type {kind.__name__}"
        raise ConfigError(f"[headrace] {name} must be {wanted}, not {value!r}") from None


@dataclass(frozen=True, slots=True)
class Needs:
    """What one task declares with ``executor_config={"headrace": {"cpus": 2, "memory": "4GiB", "stream": True}}``.

    ``stream``: whether it may run ahead of its upstream tasks, and others ahead of it; ``None``: it does not say.
    """

    cpus: float | None = None
    memory_bytes: int = 0
    stream: bool | None = None


def needs_of(executor_config: object) -> Needs:
    """Reads a task's declaration.

    Raises:
        ConfigError: it cannot be understood.
    """
    declared = executor_config.get("headrace") if isinstance(executor_config, Mapping) else None
    if not declared:
        return Needs()
    if not isinstance(declared, Mapping) or not set(declared) <= {"cpus", "memory", "stream"}:
        raise ConfigError(f'executor_config["headrace"] may have "cpus", "memory" and "stream", not {declared!r}')
    if (stream := declared.get("stream")) not in (None, True, False):
        raise ConfigError(f'executor_config["headrace"]: stream must be True or False, not {stream!r}')
    try:
        cpus = None if declared.get("cpus") is None else float(declared["cpus"])
        memory_bytes = parse_bytes(declared.get("memory") or 0)
    except (TypeError, ValueError) as error:
        raise ConfigError(f'executor_config["headrace"]: {error}') from None
    if cpus is not None and not 0 <= cpus < float("inf"):
        raise ConfigError(f'executor_config["headrace"]: cpus must not be negative, not {cpus}')
    return Needs(cpus, memory_bytes, stream)
