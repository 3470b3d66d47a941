"""Where a node's daemon is found: one folder for each user, AIRFLOW_HOME, metadata database and team."""

from __future__ import annotations

import fcntl
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
    make(place)
    return place


def make(place: Path) -> None:
    """Makes a daemon's folder and the one above, or makes sure that they are this user's alone.

    Raises:
        ConfigError: one is not.
    """
    for part in (place.parent, place):
        part.mkdir(mode=0o700, parents=part != place, exist_ok=True)
        found = part.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ConfigError(f"{part} is not a folder of this user's alone: set [headrace] directory to one")
    place.chmod(0o700)


def remove(place: Path) -> None:
    """Removes a folder whose lock the caller has, and the one above if it is empty."""
    lock_path(place).unlink(missing_ok=True)
    for part in (place, place.parent):
        try:
            part.rmdir()
        except OSError:  # somebody is just coming, or others are there
            return


def socket_path(place: Path) -> Path:
    return place / "s"


def lock_path(place: Path) -> Path:
    return place / "lock"


def take_lock(place: Path) -> int | None:
    """The descriptor of a folder's lock, which is held as long as it is open; ``None``: another daemon has it."""
    while True:
        make(place)
        try:
            lock = os.open(lock_path(place), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # a daemon that ends has removed the folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if _is_at(lock, lock_path(place)):
            return lock
        os.close(lock)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
