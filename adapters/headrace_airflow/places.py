"""Where a node's daemon is found: one folder for each user, AIRFLOW_HOME, metadata database and team."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from headrace.errors import ConfigError

_LONGEST_SOCKET: Final = 107


def folder(airflow_home: str, database: str, team: str | None, base: str = "") -> Path:
    """The folder of a daemon; made if need be, with access for this user alone.

    Args:
        airflow_home: AIRFLOW_HOME.
        database: the metadata database's URL; only a digest of it is used.
        team: the team whose executor it is; teams do not share daemons.
        base: where such folders are; default: in the temporary directory.

    Raises:
        ConfigError: the path is too long for a socket, or is another user's.
    """
    identity = "\0".join((os.path.abspath(airflow_home), database, team or ""))
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
    root = Path(base or Path(tempfile.gettempdir(), f"headrace-{os.getuid()}"))
    place = root / f"airflow-{digest}"
    if len(os.fsencode(socket_path(place))) > _LONGEST_SOCKET:
        raise ConfigError(f"{place} is too long a path for a socket: set [headrace] directory to a shorter one")
    for part in (root, place):
        part.mkdir(mode=0o700, parents=part is root and bool(base), exist_ok=True)
        found = part.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ConfigError(f"{part} is not a folder of this user's: set [headrace] directory to one")
        if found.st_mode & 0o077 and not (base and part is root):
            part.chmod(0o700)
    return place


def socket_path(place: Path) -> Path:
    return place / "s"


def lock_path(place: Path) -> Path:
    return place / "lock"
