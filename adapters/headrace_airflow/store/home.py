"""Where a node's service and its clients meet: a folder that nobody else can enter, a lock, and a socket.

The folder is named after the machine's boot, so that a shared ``AIRFLOW_HOME`` does not have machines fight over one
socket, and nothing of an earlier boot is taken for alive. Who holds the lock is the service; a socket without a lock
holder is stale.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from headrace_airflow.store.errors import ForeignStoreError
from headrace_airflow.wire import peer_pid, peer_uid

_SOCKET: Final = "store.sock"
_LOCK: Final = "store.lock"
_OLD_S: Final = 86400.0


class Home:
    """The meeting place of one node.

    Args:
        base: ``StoreSettings.home``; made if it is missing.

    Raises:
        ForeignStoreError: somebody else owns the folder.
    """

    def __init__(self, base: str) -> None:
        self.path = Path(base) / _boot()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = os.lstat(self.path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise ForeignStoreError(f"{self.path} belongs to another user: set [headrace] store_home")
        if stat.S_IMODE(status.st_mode) & 0o077:
            os.chmod(self.path, 0o700)
        self.log = self.path / "store.log"
        self.writing = self.path / "writing"

    def connect(self, *, waits: bool = True) -> socket.socket | None:
        """A connection to the service; ``None`` if there is none.

        Args:
            waits: blocks as long as the service has not accepted those who came before, more than its queue takes.

        Raises:
            ForeignStoreError: it is another user's.
            BlockingIOError: the queue is full, and the caller does not wait.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(waits)
        try:
            with self._short_path() as path:
                sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        except BaseException:
            sock.close()
            raise
        if (uid := peer_uid(sock)) != os.geteuid():
            sock.close()
            raise ForeignStoreError(f"the store service in {self.path} is run by user {uid}")
        return sock

    def serving(self) -> int | None:
        """The pid of the service; ``None`` if there is none, or it is another user's."""
        try:
            sock = self.connect()
        except OSError:
            return None
        if sock is None:
            return None
        with sock:
            return peer_pid(sock)

    def lock(self) -> int | None:
        """Takes the right to be the service, for as long as the descriptor is open; ``None`` if somebody has it."""
        fd = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def listen(self) -> socket.socket:
        """The service's socket. Only whoever has the lock may call it."""
        self.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with self._short_path() as path:
            sock.bind(path)
        os.chmod(self.path / _SOCKET, 0o600)
        sock.listen(128)
        sock.setblocking(False)
        return sock

    def unlink(self) -> None:
        """Takes the socket away; only whoever has the lock may."""
        (self.path / _SOCKET).unlink(missing_ok=True)

    def remove_earlier(self) -> None:
        """Removes what earlier boots of this machine left; other machines' folders are in use, or young."""
        for folder in self.path.parent.iterdir():
            lock = folder / _LOCK
            if folder == self.path or not lock.is_file() or time.time() - lock.stat().st_mtime < _OLD_S:
                continue
            with open(lock) as file, contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _short_path(self) -> Iterator[str]:
        """The socket's path in a form that is never longer than the 107 bytes that fit into an address."""
        fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{fd}/{_SOCKET}"
        finally:
            os.close(fd)


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
