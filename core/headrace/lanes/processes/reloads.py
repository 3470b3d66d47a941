"""Notices that the program has loaded a module again: by ``importlib.reload``, as IPython's ``autoreload`` does when
somebody has edited it, or by a new import of what it had taken out of ``sys.modules``. Workers that have the old one
load it again, too.

Only what lies outside the interpreter's own folders and those of installed packages is looked at: who edits a module
has it elsewhere, and the look comes with every message.
"""

from __future__ import annotations

import importlib
import sys
import sysconfig
import threading
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

_NEVER: Final = ("__main__", "__mp_main__", "headrace")
_INSTALLED: Final = tuple({sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")})


class Reloads:
    """What was loaded again since this was made. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._looking = False
        self._imported = -1
        self._seen: set[str] = set()
        self._specs: dict[str, Any] = {}
        """Each import gives a module a spec of its own."""
        self.names: list[str] = []
        """The modules, one after the other; may have some twice."""

    def look(self) -> None:
        """Adds what was loaded again since the last look to ``names``."""
        with self._lock:
            if self._looking:  # a destructor sends something, which the garbage collector has called meanwhile
                return
            self._looking = True
            try:
                self._find_changes()
                self._find_new()
            finally:
                self._looking = False

    def _find_changes(self) -> None:
        for name, known in self._specs.items():
            spec = _spec_of(sys.modules.get(name))
            if spec is not known and spec is not None:
                self._specs[name] = spec
                self.names.append(name)

    def _find_new(self) -> None:
        modules = sys.modules
        if self._imported == len(modules):
            return
        self._imported = len(modules)
        for name in modules.keys() - self._seen:
            spec = _spec_of(modules.get(name))
            if not name.startswith(_NEVER) and _may_be_edited(getattr(spec, "origin", None)):
                self._specs[name] = spec
            self._seen.add(name)


def load_again(names: Iterable[str]) -> None:
    """Loads those again that this process has loaded."""
    for name in dict.fromkeys(names):
        module = sys.modules.get(name)
        if module is not None:
            try:
                importlib.reload(module)
            except BaseException:
                pass  # whoever imports it hears why


def _may_be_edited(origin: Any) -> bool:
    return isinstance(origin, str) and origin.startswith("/") and not origin.startswith(_INSTALLED)


def _spec_of(module: Any) -> Any:
    # Not by its attribute: some modules answer to every name, and import something for it.
    return module.__dict__.get("__spec__") if isinstance(module, ModuleType) else None
