"""The way to a node's daemon: finds it, starts it, speaks with it."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from headrace_airflow import places, wire
from headrace_airflow.settings import Settings
from headrace_airflow.wire import Channel, Message

_BOOTSTRAP: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from headrace_airflow.daemon import main; main(*sys.argv[2:5])"
)
_POLL_S: Final = 0.02
_LARGEST_LOG_BYTES: Final = 10_000_000

_HIDDEN: Final = (
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW__CORE__SQL_ALCHEMY_CONN",
    "_AIRFLOW_PROCESS_CONTEXT",  # the scheduler's "server" would have supervisors look for Connections in the database
)
"""What neither the daemon nor tasks need, with their ``_CMD`` and ``_SECRET`` forms: with the first of them a task
could make a token for any other."""
_NO_DATABASE: Final = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////airflow-db-not-allowed/airflow.db"}


def connect(place: Path, role: str, timeout_s: float = 5.0) -> Channel | None:
    """A connection to the daemon of a folder; ``None``: there is none, or it is just ending, or another user's.

    Args:
        place: the daemon's folder.
        role: who asks; a daemon stays as long as a ``scheduler`` is connected, all others are alike to it.
        timeout_s: how long to wait for its answer.

    Raises:
        PermissionError: the folder is another user's.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(os.fspath(places.socket_path(place)))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    if wire.peer_uid(sock) != os.getuid():
        sock.close()
        return None
    channel = Channel(sock)
    channel.send({"t": "hello", "role": role})
    if channel.wait(timeout_s) is None:
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


def launch(
    place: Path, settings: Settings, log_file: Path, environ: Mapping[str, str] | None = None, store: str = ""
) -> None:
    """Starts a daemon; returns before it listens. If there is one already, the new one goes away again.

    It is no child of this process's, but of the one that adopts orphans, and has a session of its own.

    Args:
        place: the daemon's folder.
        settings: the daemon's settings.
        log_file: what it, its supervisors and its zygotes have to say goes here.
        environ: the environment of tasks; secrets that tasks must not have are taken out.
        store: settings of the node's store, as JSON; empty: the daemon shall not host it.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if log_file.exists() and log_file.stat().st_size > _LARGEST_LOG_BYTES:
        log_file.replace(log_file.with_suffix(".log.1"))
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", _BOOTSTRAP, json.dumps([p for p in sys.path if p])),
                *(os.fspath(place), json.dumps(dataclasses.asdict(settings)), store),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(os.environ if environ is None else environ),
            start_new_session=True,
        )
    process.wait()  # it has forked away


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the daemon and its tasks get of an environment."""
    hidden = {name + end for name in (*_HIDDEN, *_NO_DATABASE) for end in ("", "_CMD", "_SECRET")}
    kept = {name: value for name, value in environ.items() if name not in hidden}
    return {**kept, **_NO_DATABASE}


def connect_or_launch(
    place: Path,
    settings: Settings,
    log_file: Path,
    role: str,
    timeout_s: float = 30.0,
    environ: Mapping[str, str] | None = None,
    store: str = "",
) -> Channel:
    """A connection to the folder's daemon, which is started if there is none. Blocks until it listens.

    Args:
        place: as for ``connect``, like ``role``.
        settings: as for ``launch``, like all that is not named here.
        timeout_s: how long all of it may take.

    Raises:
        TimeoutError: no daemon came up; its log says why.
    """
    deadline = time.monotonic() + timeout_s
    launched_at = float("-inf")
    while time.monotonic() < deadline:
        if (channel := connect(place, role)) is not None:
            return channel
        if not running(place) and time.monotonic() - launched_at > 2.0:
            launch(place, settings, log_file, environ, store)
            launched_at = time.monotonic()
        time.sleep(_POLL_S)  # nothing tells when it listens
    raise TimeoutError(f"no Headrace daemon answered within {timeout_s:.0f} s; see {log_file}")
