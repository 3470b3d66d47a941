"""What a parsed DAG file was made from: the files and folders whose change makes the parse out of date.

A ``Watch`` listens to the interpreter's audit events while a DAG file is parsed: files that are read (by imports, by
``open``), folders that are listed, connections that Python's sockets make. A file that was looked for and not found
counts too.

What lies where packages are installed is not watched file by file, but by the folders it lies in: installing,
upgrading or removing a package changes them.

What another machine, or a service of this one, has answered stands in no such list: then the parse is ``unrepeatable``.
"""

from __future__ import annotations

import os
import site
import socket
import stat
import sys
import sysconfig
import time
from collections.abc import Sequence
from typing import Any, Final

Signature = list[int]
"""Time of the last change, size, inode; empty: there is no such file."""
Sources = list[tuple[str, Signature]]

_SYSTEM: Final = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/share/zoneinfo/")
_IMPORTLIB: Final = "<frozen importlib."
_CHANGED: Final[Signature] = [-1]


def signature(path: str) -> Signature:
    """The present state of a file or folder."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return []
    return [found.st_mtime_ns, found.st_size, found.st_ino]


def changed(sources: Sequence[tuple[str, Signature]]) -> str | None:
    """The first of the sources that is not what it was, or ``None``."""
    return next((path for path, was in sources if signature(path) != list(was)), None)


class Watch:
    """Notes what is read from now until ``stop``. One a process, ever: audit hooks cannot be removed."""

    def __init__(self) -> None:
        self._since_ns = time.time_ns()
        self._paths: set[str] = set()
        self._modules = set(sys.modules)
        self._on = True
        self.unrepeatable = ""
        """Why the parse may give something else next time although no file has changed."""
        sys.addaudithook(self._hear)

    def stop(self) -> Sources:
        """Ends the watch; returns what was read, with its state.

        What changed while it was read is given a state that no file has: it is known to be out of date.
        """
        self._on = False
        for name in set(sys.modules) - self._modules:
            if path := getattr(sys.modules[name], "__file__", None):
                self._paths.add(os.path.abspath(path))
        installed = _installed()
        watched = {path for path in self._paths if not path.startswith(installed)}
        watched.update(package_folders())
        return [(path, self._settled(path)) for path in sorted(watched)]

    def _settled(self, path: str) -> Signature:
        now = signature(path)
        return _CHANGED if now and self._since_ns <= now[0] <= time.time_ns() else now

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and not (isinstance(flags, int) and flags & os.O_ACCMODE):
                self._note(os.fsdecode(path))
        elif event in ("os.listdir", "os.scandir"):
            path = arguments[0]
            if isinstance(path, (str, bytes)) and not _called_by_importlib():
                self._note(os.fsdecode(path))
        elif event == "socket.connect" and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
            self.unrepeatable = f"it connects to {arguments[1]} while it is parsed"

    def _note(self, path: str) -> None:
        path = os.path.abspath(path)
        if path.startswith(_SYSTEM) or path.endswith(".pyc") or f"{os.sep}__pycache__" in path:
            return
        try:
            mode = os.stat(path).st_mode
        except OSError:
            self._paths.add(path)
            return
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            self._paths.add(path)


def _called_by_importlib() -> bool:
    return sys._getframe(2).f_code.co_filename.startswith(_IMPORTLIB)


def package_folders() -> list[str]:
    """Where packages are installed."""
    return [folder for folder in _installed() if folder.endswith("-packages" + os.sep)]


def _installed() -> tuple[str, ...]:
    folders = {*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()}
    return tuple(sorted(os.path.abspath(folder) + os.sep for folder in folders if os.path.isdir(folder)))
