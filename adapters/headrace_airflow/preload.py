"""Libraries that tasks import when they run: their zygote imports them too, once, and later tasks have them at once.

Airflow tells its users to import large libraries inside of tasks, so that no parse pays for them; then each task does.
Here the first one to import such a library says so, and its zygote does the same meanwhile, on another core.

    task ──{"t": "import", module}──▶ zygote, which imports it as soon as nobody wants anything of it;
                                      a fork that is asked for meanwhile waits for the end of that

What a zygote has imported all of its tasks share: it must have no connection, no open file and no thread, and nothing
of it may depend on what a task does first. So these are few, known libraries, and they are left to the tasks where the
DAG's own files set what such a library reads when it is imported, or where modules come from.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from headrace_airflow.wire import Message

QUIET: Final = frozenset({"numpy", "pandas", "pyarrow", "scipy", "sklearn"})
"""All that importing them does is to define things."""

_SETS_UP: Final = re.compile(
    rb"\b(?:OMP|OPENBLAS|GOTO|MKL|KMP|BLIS|NPY|NUMPY|ARROW|PYARROW|PANDAS|SCIPY|SKLEARN)_[A-Z]"
    rb"|\bsys\.(?:path|meta_path)\b|\baddsitedir\b"
)
"""What a source says that may have to be done before such a library is imported."""


class Imports:
    """In a zygote: what its tasks have begun to import.

    Args:
        sources: the paths that its DAG file was made from; looked into when the first task has told of an import.
        wanted: otherwise nothing is imported.
    """

    def __init__(self, sources: Iterable[str], wanted: bool = True) -> None:
        self._sources = sources
        self._wanted = wanted
        self._wished: list[str] = []

    def wish(self, module: str) -> None:
        """A task has begun to import this; names that are none of ``QUIET`` are ignored."""
        if module in QUIET and module not in sys.modules and module not in self._wished and self._allowed:
            self._wished.append(module)

    @property
    def pending(self) -> bool:
        return bool(self._wished)

    def do_next(self) -> None:
        """Imports one; a failure is only logged, since tasks that need it fail by themselves."""
        module = self._wished.pop(0)
        try:
            importlib.import_module(module)
        except BaseException:  # a library may raise anything
            traceback.print_exc()
        self._wished = [other for other in self._wished if other not in sys.modules]  # it may have needed them

    @functools.cached_property
    def _allowed(self) -> bool:
        return self._wanted and not any(map(_may_set_up, self._sources))


def _may_set_up(path: str) -> bool:
    if path.endswith(".zip"):
        return True
    try:
        return path.endswith(".py") and _SETS_UP.search(Path(path).read_bytes()) is not None
    except OSError:  # it is gone: nobody knows what it said
        return True


class _Announcer(MetaPathFinder):
    """Finds nothing: it is asked first, and tells."""

    def __init__(self, tell: Callable[[Message, Sequence[int]], None]) -> None:
        self._tell = tell

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in QUIET:
            self._tell({"t": "import", "module": fullname}, [])
        return None


def announce(tell: Callable[[Message, Sequence[int]], Any]) -> None:
    """In a task: has its zygote hear of what it begins to import.

    Args:
        tell: brings a message to the zygote; thread-safe.
    """
    if not sys.modules.keys() >= QUIET:
        sys.meta_path.insert(0, _Announcer(tell))
