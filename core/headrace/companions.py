"""What an adapter needs in worker processes, without the core knowing the adapter.

A *companion* is a module that must be imported wherever another one is: ``headrace_dask`` wherever dask is, so that
tasks that compute find the scheduler there, and locks know that they are in a worker. Workers import nothing for it
before a task imports the other module, so that a worker without dask stays small.

Data flow: ``accompany()`` and ``variables`` in the owner → the environment of each worker started from then on →
``install()`` in the worker.

A companion may also have workers follow a *state* of the owner, such as a library's settings: ``share()`` in both; and
for each job ``states()`` in the owner → ``follow()`` in the worker, if that was told something else before. And what it
says in a worker while a task runs, by ``say()``, it hears in the owner, in the thread that waits for the task's job.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final, TypeAlias

_VARIABLE: Final = "HEADRACE_COMPANIONS"

variables: dict[str, str] = {}
"""Further environment variables of workers; set by adapters in the owner."""

in_worker = False
"""Whether this process is a worker, as far as companions are concerned."""

States: TypeAlias = dict[str, bytes]
"""Name → state, as only the companion understands it. Not changed once it is made."""

_companions: dict[str, str] = {}
_waiting: list[Callable[[], object]] = []
_shared: dict[str, tuple[Callable[[], bytes], Callable[[bytes], None]]] = {}
_ears: dict[str, Callable[[bytes], object]] = {}
_mouth: Callable[[str, bytes], bool] = lambda name, said: False  # noqa: E731 - where there is no owner
_silent: set[str] = set()
"""Those that could not say what workers should follow, and for which that has been printed."""
_not_applied: States = {}
"""In a worker: of companions that have not been imported there yet."""


def accompany(module: str, companion: str) -> None:
    """Has workers that start from now on import ``companion`` right after ``module``, whenever that is imported."""
    _companions[module] = companion


def add_to(environment: dict[str, str]) -> None:
    """Puts what workers need to know into the environment of one."""
    environment.update(variables)
    if _companions:
        environment[_VARIABLE] = ",".join(f"{module}:{companion}" for module, companion in _companions.items())


def install(environment: Mapping[str, str]) -> None:
    """In a worker, before it imports anything else: has it import companions as their modules come.

    A worker that was forked may have some modules already: their companions come now.
    """
    global in_worker
    in_worker = True
    for pair in filter(None, environment.get(_VARIABLE, "").split(",")):
        module, companion = pair.split(":")
        _companions[module] = companion
    if _companions:
        sys.meta_path.insert(0, _Finder(dict(_companions)))
    for act in _waiting:
        act()
    for module, companion in list(_companions.items()):
        if module in sys.modules:
            _import(companion)


def once_in_worker(act: Callable[[], object]) -> None:
    """Has a companion do something in workers: now if this process is one, or when it is told that it is."""
    if in_worker:
        act()
    else:
        _waiting.append(act)


def share(
    name: str, state: Callable[[], bytes], apply: Callable[[bytes], None], hear: Callable[[bytes], object] | None = None
) -> None:
    """Has workers follow a state of the owner; to be called in both, when the companion is imported.

    Args:
        state: gives it, in the owner, in whatever thread sends the tasks of a job. Equal states are equal bytes. If it
            fails, workers stay with what they know.
        apply: takes it over, in a worker, between tasks; in a worker that knows it already, at once.
        hear: called in the owner with what :func:`say` was given in a worker.
    """
    _shared[name] = state, apply
    if hear is not None:
        _ears[name] = hear
    told = _not_applied.pop(name, None)
    if told is not None:
        _apply(name, told)


def states() -> States:
    """What workers should follow, as it is now. Takes as long as the companions do: to be called once a job."""
    found: States = {}
    for name, (state, _) in list(_shared.items()):
        try:
            found[name] = _checked(state())
        except Exception:  # tasks run without it; whoever looks for the reason finds it here
            if name not in _silent:
                _silent.add(name)
                _print_error()
    return found


def _checked(state: bytes) -> bytes:
    if type(state) is not bytes:  # a subclass cannot be marshalled
        raise TypeError(f"the state of a companion is bytes, not {state!r}")
    return state


def follow(states: States) -> None:
    """In a worker: takes over what is new."""
    for name, told in states.items():
        if name in _shared:
            _apply(name, told)
        else:
            _not_applied[name] = told


def speak_through(mouth: Callable[[str, bytes], bool]) -> None:
    """In a worker: what :func:`say` is from now on."""
    global _mouth
    _mouth = mouth


def say(name: str, said: bytes) -> bool:
    """In a worker: tells the companion in the owner something. Thread-safe.

    Returns:
        Whether that is possible: no, unless a task is running.
    """
    return _mouth(name, said)


def hear(name: str, said: bytes) -> None:
    """In the owner: passes on what was said in a worker."""
    _ears[name](said)


def _apply(name: str, told: bytes) -> None:
    try:
        _shared[name][1](told)
    except Exception:  # a worker that cannot follow is still of use; whoever looks for the reason finds it here
        _print_error()


def _print_error() -> None:
    import traceback

    traceback.print_exc()


class _Finder:
    """Lets the other finders find a module, and imports its companion once it has been executed."""

    def __init__(self, pending: dict[str, str]) -> None:
        self._pending = pending

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        companion = self._pending.pop(name, None)
        if companion is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec, companion)  # type: ignore[assignment]  # it has all that an import calls
        return spec


class _Loader:
    """Loads with the module's own loader, which it then puts back in its place."""

    def __init__(self, spec: ModuleSpec, companion: str) -> None:
        self._loader: Any = spec.loader
        self._companion = companion

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _import(self._companion)


def _import(companion: str) -> None:
    try:
        importlib.import_module(companion)
    except ImportError:  # not installed where the worker runs: the module works without it
        pass
