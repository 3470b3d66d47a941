"""What can be set of the store: one frozen object, which also travels to the service as JSON. Imports no Airflow.

========================  =============================================================================================
``xcom_path``             where durable copies go: a folder or an fsspec URL, this deployment's alone; default:
                          ``$AIRFLOW_HOME/headrace/xcom``
``xcom_storage_options``  JSON, handed to fsspec
``xcom_former_paths``     earlier values of ``xcom_path``, comma-separated: references into them still resolve
``xcom_memory``           memory for values: ``4GiB``, or a share of all (default: ``0.4``); what is more is spilled
``xcom_spill_path``       folder for what is spilled; default: ``$AIRFLOW_HOME/headrace/spill``
``xcom_ttl``              seconds after which a run that nobody touched loses its values; default: 30 days; 0: never
``xcom_warm``             seconds that a durable value stays in memory after its last use; default: 1800
``xcom_collect``          seconds between two looks for values that were deleted through the REST API; default: 3600;
                          0: never; HeadraceExecutor does it, others call ``airflow headrace store --collect``
``xcom_grace``            seconds that a deleted value can still be read by who had its reference; default: 60
``xcom_inline_bytes``     plain JSON up to this size stays in the database as stock; default: 64 KiB
``store_home``            folder of the service's socket; default: ``$AIRFLOW_HOME/headrace/node``
``store_idle_timeout``    seconds after which a service of its own ends without a client; default: 600
========================  =============================================================================================

They stand in ``[headrace]`` of Airflow's configuration, so in the environment as ``AIRFLOW__HEADRACE__XCOM_PATH``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from headrace.errors import ConfigError
from headrace_airflow.memory import memory_limit_bytes, parse_bytes

_SHARE_OF_MEMORY: Final = 0.4


@dataclasses.dataclass(frozen=True, slots=True)
class StoreSettings:
    """See the module.

    Args:
        home: folder of the socket and the locks.
        url: where durable copies go.
        spill: folder for values that do not fit into memory.
        budget_bytes: memory for values.
        ttl_s: how long an untouched run keeps its values; 0: for ever.
        grace_s: how long a deleted value can still be read by somebody who had its reference before.
        warm_s: how long a value stays in memory after its last use, once it is durable.
        idle_s: a service of its own ends after so long without a client.
        storage_options: for fsspec.
        former_urls: where references may point besides ``url``.
        inline_bytes: plain JSON up to this size stays in the database.
        collect_s: time between two looks for values that the database no longer refers to; 0: nobody looks.
    """

    home: str
    url: str
    spill: str
    budget_bytes: int
    ttl_s: float = 30 * 86400.0
    grace_s: float = 60.0
    warm_s: float = 1800.0
    idle_s: float = 600.0
    storage_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    former_urls: tuple[str, ...] = ()
    inline_bytes: int = 64 * 1024
    collect_s: float = 3600.0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StoreSettings:
        fields = json.loads(text)
        return cls(**{**fields, "former_urls": tuple(fields["former_urls"])})


def from_options(get: Callable[[str], str | None], airflow_home: str) -> StoreSettings:
    """Builds the settings from Airflow's configuration.

    Args:
        get: the value of an option in ``[headrace]``; ``None`` or empty if it is not set.
        airflow_home: the folder under which the defaults stand.

    Raises:
        ConfigError: a value cannot be used.
    """
    base = Path(airflow_home).absolute() / "headrace"
    url = get("xcom_path") or str(base / "xcom")
    former = tuple(part.strip() for part in (get("xcom_former_paths") or "").split(",") if part.strip())
    return StoreSettings(
        home=get("store_home") or str(base / "node"),
        url=url.rstrip("/"),
        spill=get("xcom_spill_path") or str(base / "spill"),
        budget_bytes=_memory("xcom_memory", get("xcom_memory")),
        ttl_s=_seconds("xcom_ttl", get("xcom_ttl"), 30 * 86400.0),
        grace_s=_seconds("xcom_grace", get("xcom_grace"), 60.0),
        warm_s=_seconds("xcom_warm", get("xcom_warm"), 1800.0),
        idle_s=_seconds("store_idle_timeout", get("store_idle_timeout"), 600.0),
        storage_options=_options(get("xcom_storage_options")),
        former_urls=former,
        inline_bytes=_bytes("xcom_inline_bytes", get("xcom_inline_bytes") or "64KiB"),
        collect_s=_seconds("xcom_collect", get("xcom_collect"), 3600.0),
    )


def _bytes(name: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError:
        raise ConfigError(f"[headrace] {name} must be a size like 512MiB or 4GiB, not {text!r}") from None


def _memory(name: str, text: str | None) -> int:
    if not text:
        return int(_SHARE_OF_MEMORY * memory_limit_bytes())
    try:
        share = float(text)
    except ValueError:
        return _bytes(name, text)
    return int(share * memory_limit_bytes()) if 0 < share < 1 else _bytes(name, text)


def _seconds(name: str, text: str | None, default: float) -> float:
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise ConfigError(f"[headrace] {name} must be a number of seconds, not {text!r}")
    return value


def _options(text: str | None) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ConfigError(f"[headrace] xcom_storage_options must be a JSON object, not {text!r}")
    return options
