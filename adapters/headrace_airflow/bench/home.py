"""The settings of an Airflow of one's own: a directory, ports, keys, and else everything as it comes."""

from __future__ import annotations

import base64
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace_airflow.bench.waiting import free_ports

FOREIGN = ("AIRFLOW", "HEADRACE", "PYTEST")
"""Variables of the surrounding environment that begin so do not reach it; under pytest, Airflow logs otherwise."""
AIRFLOW = [sys.executable, "-m", "airflow"]


@dataclass(frozen=True)
class AirflowHome:
    """Where an Airflow lives, and the environment of its processes.

    Args:
        folder: an empty directory; it is AIRFLOW_HOME.
        settings: more variables of the environment, ``AIRFLOW__…`` or others; they go before what is chosen here.
    """

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    api_port: int = field(default_factory=lambda: free_ports(1)[0])
    _secrets: Mapping[str, str] = field(default_factory=lambda: _fresh_secrets(), repr=False)

    def __post_init__(self) -> None:
        for path in (self.dags, self.plugins, self.logs, self.temporary, self.runtime):
            path.mkdir(mode=0o700)
        # Otherwise whoever starts first writes one, and the others read half of it.
        (self.folder / "airflow.cfg").touch()

    @property
    def dags(self) -> Path:
        return self.folder / "dags"

    @property
    def plugins(self) -> Path:
        return self.folder / "plugins"

    @property
    def logs(self) -> Path:
        """What Airflow's components print, a file each; tasks' logs are where Airflow puts them."""
        return self.folder / "components"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def runtime(self) -> Path:
        return self.folder / "run"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def environment(self, database_url: str = "") -> dict[str, str]:
        """The whole environment of its processes; without a database, of those that need none."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url} if database_url else {}
        return {**inherited, **self._chosen(), **self._secrets, **database, **self.settings}

    def _chosen(self) -> dict[str, str]:
        worker_log_port, triggerer_log_port = free_ports(2)
        return {
            "AIRFLOW_HOME": str(self.folder),
            "TMPDIR": str(self.temporary),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(self.plugins),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.api_port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(worker_log_port),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(triggerer_log_port),
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "2",  # a new file is seen soon, however old the last look is
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "SCARF_ANALYTICS": "false",
            "no_proxy": "127.0.0.1,localhost",
        }


def _fresh_secrets() -> dict[str, str]:
    return {
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
    }
