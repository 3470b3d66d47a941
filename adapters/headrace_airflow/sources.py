"""What a parsed DAG file was made from: the files and folders whose change makes the parse out of date.

A ``Watch`` listens to the interpreter's audit events while a DAG file is parsed: files that are read (by imports, by
``open``), folders that are listed, connections that Python's sockets make. A file that was looked for and not found
counts too; so does one that an import would have taken, had it been there, instead of what it took or of nothing.

What lies where packages are installed is not watched file by file, but by the folders it lies in: installing,
upgrading or removing a package changes them.

What another machine, or a service of this one, has answered stands in no such list: then the parse is ``unrepeatable``.

Not seen: a file that the DAG file asks about without opening it (``os.path.exists``, ``os.stat``), what a program that
it starts has read, and what an import hook of its own takes from elsewhere. The names of modules that appear are
watched for the first ``_MOST_ASKED`` imports.
"""

from __future__ import annotations

import os
import site
import socket
import stat
import sys
import sysconfig
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ModuleSpec
from types import ModuleType
from typing import Any, Final

Signature = list[int]
"""Time of the last change, size, inode; empty: there is no such file."""
Lacks = list[str]
"""Names that a folder, which may be missing, has not; at least one."""
Sources = list[tuple[str, Signature | Lacks]]

_SYSTEM: Final = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/share/zoneinfo/")
_IMPORTLIB: Final = "<frozen importlib."
_SUFFIXES: Final = (*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES)
"""Of modules, as imports try them; ``.pyc`` comes last, and nobody puts it beside DAG files."""
_MOST_ASKED: Final = 5000
_CHANGED: Final[Signature] = [-1]


def signature(path: str) -> Signature:
    """The present state of a file or folder."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return []
    return [found.st_mtime_ns, found.st_size, found.st_ino]


def changed(sources: Sequence[tuple[str, Signature | Lacks]]) -> str | None:
    """The first of the sources that is not what it was, or ``None``."""
    return next((path for path, was in sources if not _is(path, was)), None)


def looked_at(sources: Sources) -> list[str]:
    """The files and folders that the parse has looked at itself."""
    return [path for path, was in sources if not _tells_what_lacks(was)]


def _tells_what_lacks(was: Signature | Lacks) -> bool:
    return bool(was) and isinstance(was[0], str)


def _is(path: str, was: Signature | Lacks) -> bool:
    if _tells_what_lacks(was):
        return set(_listed(path)).isdisjoint(was)  # one look, however many names
    return signature(path) == was


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (OSError, ValueError):  # imports find nothing there either
        return []


class Watch:
    """Notes what is read from now until ``stop``. One a process, ever: audit hooks cannot be removed."""

    def __init__(self) -> None:
        self._since_ns = time.time_ns()
        self._paths: set[str] = set()
        self._modules = set(sys.modules)
        self._imports = _Imports()
        self._on = True
        self.unrepeatable = ""
        """Why the parse may give something else next time although no file has changed."""
        sys.addaudithook(self._hear)
        sys.meta_path.insert(0, self._imports)

    def stop(self) -> Sources:
        """Ends the watch; returns what was read, with its state.

        What changed while it was read is given a state that no file has: it is known to be out of date.
        """
        self._on = False
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self._imports]
        for name in set(sys.modules) - self._modules:
            if path := getattr(sys.modules[name], "__file__", None):
                self._paths.add(os.path.abspath(path))
        installed = _installed()
        watched = {path for path in self._paths if not path.startswith(installed)}
        watched.update(package_folders())
        missing: dict[str, set[str]] = defaultdict(set)
        for path in self._imports.alternatives(installed):
            folder, name = os.path.split(path)
            if os.path.lexists(path):
                watched.add(path)
            else:
                missing[folder].add(name)
        return [
            *((path, self._settled(path)) for path in sorted(watched)),
            *((folder, sorted(names)) for folder, names in sorted(missing.items())),
        ]

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


class _Imports(MetaPathFinder):
    """Finds nothing: it is asked first, and notes what is looked for, and where.

    The audit event ``import`` tells less: it does not fire for ``importlib.import_module`` and ``find_spec``, and does
    not say where a module of a package is looked for.
    """

    def __init__(self) -> None:
        self._asked: set[tuple[str, tuple[str, ...]]] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if len(self._asked) < _MOST_ASKED:
            folders = sys.path if path is None else path
            self._asked.add((fullname, tuple(folder for folder in folders if isinstance(folder, str))))
        return None

    def alternatives(self, installed: tuple[str, ...]) -> set[str]:
        """What would have been imported instead of what was found, or of nothing, if it had been there."""
        asked = ((name, folders, _origin(name)) for name, folders in list(self._asked))  # threads may still import
        return {
            path
            for name, folders, origin in asked
            if origin is not None
            for path in _before(name, folders, origin, installed)
        }


def _origin(name: str) -> str | None:
    """The file that a module was loaded from; empty: it was not, or others may join it; ``None``: it is built in."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if not isinstance(spec, ModuleSpec) or spec.origin is None:
        return ""
    return os.path.abspath(spec.origin) if spec.has_location else None


def _before(name: str, folders: Sequence[str], origin: str, installed: tuple[str, ...]) -> Iterator[str]:
    """The files that a module would rather be loaded from than from its origin, but for those of installed packages."""
    for folder in map(os.path.abspath, folders):
        for path in _candidates(os.path.join(folder, name.rpartition(".")[2])):
            if path == origin:
                return
            if not path.startswith(installed):
                yield path


def _candidates(path: str) -> Iterator[str]:
    """The files of a module, or package, in the order of imports; a folder that is missing stands for those in it."""
    if os.path.isdir(path):
        yield from (os.path.join(path, "__init__" + suffix) for suffix in _SUFFIXES)
    else:
        yield path
    yield from (path + suffix for suffix in _SUFFIXES)


def _called_by_importlib() -> bool:
    return sys._getframe(2).f_code.co_filename.startswith(_IMPORTLIB)


def package_folders() -> list[str]:
    """Where packages are installed."""
    return [folder for folder in _installed() if folder.endswith("-packages" + os.sep)]


def _installed() -> tuple[str, ...]:
    """The folders of installed packages and of the interpreter; not their prefix: Airflow's home may lie below that."""
    paths = {path for kind, path in sysconfig.get_paths().items() if kind != "data"}
    folders = {*site.getsitepackages(), site.getusersitepackages(), *paths}
    return tuple(sorted(os.path.abspath(folder) + os.sep for folder in folders if os.path.isdir(folder)))
