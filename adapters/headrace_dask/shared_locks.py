"""Locks that exclude across the owner and its workers, for ``SerializableLock`` with a name.

A lock inside an argument or a closure keeps its task in this process (:mod:`headrace_dask.locks`). A lock at the top of
an importable module is never pickled: each process makes its own when it imports the module, and only the name
(``SerializableLock("x")``) says that they are meant to be one. Such a lock takes, besides its own thread lock, one
byte of an anonymous file that the owner shares with its workers: the byte that the name hashes to, out of 2^62.

The byte is locked by *open file description* (``F_OFD_SETLKW``), which each process opens for itself: unlike POSIX
locks these see no deadlock where several threads of a process wait crosswise, and are not lost when another descriptor
of the file is closed.
Order: thread lock first, then the byte; so within a process at most one thread waits for a byte.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import struct
import time
from typing import Any, Final

from headrace import companions
from headrace_dask.internals import SerializableLock

_VARIABLE: Final = "HEADRACE_LOCKS"
_ANONYMOUS: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Tokens that dask makes up: no other process has the same, so there is nobody to exclude."""
_RETRY_S: Final = 0.002

_fd = -1


def install() -> None:
    """Has every named ``SerializableLock`` of this process, older ones included, exclude across processes."""
    global _fd
    if _fd >= 0:
        return
    _fd = _open()
    os.register_at_fork(after_in_child=_reopen)
    if not companions.in_worker:
        companions.once_in_worker(_reopen)
    methods = {"acquire": _acquire, "release": _release, "__enter__": _enter, "__exit__": _exit}
    for name, method in methods.items():
        setattr(SerializableLock, name, method)


def _open() -> int:
    """Opens the owner's file in a worker and its forks; in any other process makes one, for workers of its own."""
    if companions.in_worker and _VARIABLE in os.environ:
        return os.open(os.environ[_VARIABLE], os.O_RDWR | os.O_CLOEXEC)
    fd = os.memfd_create("headrace-locks", os.MFD_CLOEXEC)
    companions.variables[_VARIABLE] = f"/proc/{os.getpid()}/fd/{fd}"
    return fd


def _reopen() -> None:
    """In a forked child: what it unlocked through the descriptor it inherited, its parent would lose."""
    global _fd
    os.close(_fd)
    _fd = _open()


def _byte_of(lock: Any) -> int:
    """The byte of a named lock; -1 for one without a name."""
    token = lock.token
    if isinstance(token, str) and _ANONYMOUS.fullmatch(token):
        return -1
    text = f"{type(token).__qualname__} {token!r}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 2


def _request(kind: int, byte: int) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)


def _take(byte: int, blocking: bool, end_s: float | None) -> bool:
    """Locks a byte; with ``end_s``, a time on the monotonic clock, gives up then."""
    while True:
        try:
            command = fcntl.F_OFD_SETLKW if blocking and end_s is None else fcntl.F_OFD_SETLK
            fcntl.fcntl(_fd, command, _request(fcntl.F_WRLCK, byte))
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if not blocking or end_s is None or time.monotonic() >= end_s:
            return False
        time.sleep(_RETRY_S)  # the kernel waits for a lock on a file for ever, or not at all


def _acquire(self: Any, blocking: bool = True, timeout: float = -1) -> bool:
    end_s = time.monotonic() + timeout if timeout >= 0 else None
    if not self.lock.acquire(blocking, timeout):
        return False
    byte = _byte_of(self)
    if byte < 0:
        return True
    taken = False
    try:
        taken = _take(byte, blocking, end_s)
    finally:
        if not taken:
            self.lock.release()
    return taken


def _release(self: Any) -> None:
    byte = _byte_of(self)
    if byte >= 0 and self.lock.locked():
        fcntl.fcntl(_fd, fcntl.F_OFD_SETLK, _request(fcntl.F_UNLCK, byte))
    self.lock.release()


def _enter(self: Any) -> None:
    _acquire(self)


def _exit(self: Any, *exc_info: object) -> None:
    _release(self)
