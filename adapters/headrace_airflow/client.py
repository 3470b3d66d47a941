"""The way to a node's daemon: finds it, starts it, speaks with it."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace_airflow import places, sources, wire
from headrace_airflow.settings import Settings
from headrace_airflow.wire import Channel, Message

_BOOTSTRAP: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from headrace_airflow.daemon import main; main(sys.argv[2])"
)
LAUNCH_AGAIN_S: Final = 2.0
"""A daemon that has been launched, and has not taken its folder's lock after so long, is launched again."""
_POLL_S: Final = 0.02
_LARGEST_LOG_BYTES: Final = 10_000_000

_HIDDEN: Final = (
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW__CORE__SQL_ALCHEMY_CONN",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC",
    "_AIRFLOW_PROCESS_CONTEXT",  # the scheduler's "server" would have supervisors look for Connections in the database
)
"""What neither the daemon nor tasks need, with their ``_CMD`` and ``_SECRET`` forms: with the first of them a task
could make a token for any other."""
_NO_DATABASE: Final = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////airflow-db-not-allowed/airflow.db"}
_OF_ONE_START: Final = frozenset({
    "INVOCATION_ID", "JOURNAL_STREAM", "OLDPWD", "PWD", "SHLVL", "SYSTEMD_EXEC_PID", "_",
})  # fmt: skip
"""What shells and service managers give to each process anew."""


@dataclass(frozen=True)
class Setup:
    """What a daemon is started with.

    Args:
        settings: the daemon's settings.
        environ: the environment of tasks; secrets that tasks must not have are taken out.
        store: settings of the node's store, as JSON; empty: the daemon shall not host it.
        config: Airflow's configuration file.
    """

    settings: Settings
    environ: Mapping[str, str]
    store: str = ""
    config: str = ""

    @functools.cached_property
    def fingerprint(self) -> str:
        """The same for all that would run tasks alike: with these settings, this Python and what is installed now."""
        kept = {name: value for name, value in environment(self.environ).items() if name not in _OF_ONE_START}
        try:
            config = Path(self.config).read_text(encoding="utf-8", errors="replace")
        except OSError:  # there is none
            config = ""
        packages = [sources.signature(folder) for folder in sources.package_folders()]
        parts = [sys.executable, _path(), kept, dataclasses.asdict(self.settings), self.store, config, packages]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def connect(place: Path, role: str, timeout_s: float = 5.0, fingerprint: str = "") -> Channel | None:
    """A connection to the daemon of a folder; ``None``: there is none, or another user's, or it ends or is silent.

    Args:
        place: the daemon's folder.
        role: who asks; a daemon stays as long as a ``scheduler`` is connected, all others are alike to it.
        timeout_s: how long to wait for its answer.
        fingerprint: a scheduler's ``Setup.fingerprint``: where it is another one than the daemon's, this makes way.

    Raises:
        PermissionError: the folder is another user's.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)  # or it would wait for ever where a daemon that does nothing has a full queue
    try:
        sock.connect(os.fspath(places.socket_path(place)))
    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    if wire.peer_uid(sock) != os.getuid():
        sock.close()
        return None
    channel = Channel(sock)
    channel.send({"t": "hello", "role": role, "fingerprint": fingerprint})
    welcome = channel.wait(timeout_s)
    if welcome is None or welcome[0].get("ends"):
        channel.close()
        return None
    return channel


def ask(channel: Channel, message: Message, timeout_s: float = 5.0) -> Message | None:
    """Sends a message and waits for its answer, on a connection that nothing else uses; ``None``: none came."""
    channel.send(message)
    answer = channel.wait(timeout_s)
    return None if answer is None else answer[0]


def running(place: Path) -> bool:
    """Whether some daemon has the folder's lock."""
    try:
        lock = os.open(places.lock_path(place), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(lock)


def launch(place: Path, setup: Setup, log_file: Path) -> None:
    """Starts a daemon; returns before it listens. If there is one already, the new one goes away again.

    It is no child of this process's, but of the one that adopts orphans, and has a session of its own.

    Args:
        place: the daemon's folder.
        setup: what it is started with.
        log_file: what it, its supervisors and its zygotes have to say goes here.
    """
    given = {
        "settings": dataclasses.asdict(setup.settings), "store": setup.store, "fingerprint": setup.fingerprint,
    }  # fmt: skip
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if log_file.exists() and log_file.stat().st_size > _LARGEST_LOG_BYTES:
        log_file.replace(log_file.with_suffix(".log.1"))
    with log_file.open("ab") as log:
        subprocess.run(  # until it has forked away
            [sys.executable, "-c", _BOOTSTRAP, json.dumps(_path()), os.fspath(place)],
            input=json.dumps(given).encode(),
            stdout=log,
            stderr=log,
            env=environment(setup.environ),
            start_new_session=True,
        )


def _path() -> list[str]:
    return [folder for folder in sys.path if folder]


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the daemon and its tasks get of an environment."""
    hidden = {name + end for name in (*_HIDDEN, *_NO_DATABASE) for end in ("", "_CMD", "_SECRET")}
    kept = {name: value for name, value in environ.items() if name not in hidden}
    return {**kept, **_NO_DATABASE}


def connect_or_launch(place: Path, setup: Setup, log_file: Path, role: str, timeout_s: float = 30.0) -> Channel:
    """A connection to the folder's daemon, which is started if there is none. Blocks until it listens.

    Args:
        place: as for ``connect``, like ``role``.
        setup: as for ``launch``, like ``log_file``.
        timeout_s: how long all of it may take.

    Raises:
        TimeoutError: no daemon came up; its log says why.
    """
    deadline = time.monotonic() + timeout_s
    launched_at = float("-inf")
    while time.monotonic() < deadline:
        if (channel := connect(place, role, fingerprint=setup.fingerprint)) is not None:
            return channel
        if not running(place) and time.monotonic() - launched_at > LAUNCH_AGAIN_S:
            launch(place, setup, log_file)
            launched_at = time.monotonic()
        time.sleep(_POLL_S)  # nothing tells when it listens
    raise TimeoutError(f"no Headrace daemon answered within {timeout_s:.0f} s; see {log_file}")
