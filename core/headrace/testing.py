"""Task functions and awkward objects for tests, importable in every process.

They live in the installed package and not in the tests, because a worker process unpickles functions by name, and a
function of a test module has no name that another process could import. Nothing here imports another part of Headrace,
and numpy only inside the functions that make arrays.

Several tasks meet or count through files in a directory of the test (``tmp_path``): that works alike in the caller's
thread, in pool threads, in worker processes and after any of them was killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy

CrashKind = Literal["exit", "c_exit", "segfault", "sigkill", "raise"]
"""loky's crash matrix: SystemExit, exit without Python knowing, SIGSEGV, SIGKILL, an ordinary exception."""

CRASH_EXIT_CODE = 41

# --- plain work -------------------------------------------------------------------------------------------------------


def inc(x: int) -> int:
    return x + 1


def add(x: Any, y: Any) -> Any:
    return x + y


def sum_up(*values: Any) -> Any:
    """The sum of its arguments or, given one list, of what is in it."""
    return sum(values[0]) if len(values) == 1 and isinstance(values[0], (list, tuple)) else sum(values)


def identity(x: Any) -> Any:
    return x


def collect(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What it was called with."""
    return args, kwargs


def burn(turns: int) -> int:
    """Holds the GIL for about ``turns`` × 50 ns; the result depends on every turn."""
    value = 1
    for turn in range(turns):
        value = (value * 31 + turn) & 0xFFFF
    return value


def slow(x: Any, seconds: float = 0.05) -> Any:
    """Gives ``x`` back after a while, during which other threads can run."""
    time.sleep(seconds)
    return x


def spin(x: Any, seconds: float = 0.05) -> Any:
    """Gives ``x`` back after this much CPU time of its thread, holding the GIL."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass
    return x


# --- large values -----------------------------------------------------------------------------------------------------


def make_bytes(size_bytes: int, fill: int = 7) -> bytes:
    return bytes([fill]) * size_bytes


def make_array(size_bytes: int, fill: float = 1.0) -> numpy.ndarray[Any, Any]:
    """A float64 array of this many bytes (rounded down to whole elements), all ``fill``."""
    import numpy as np

    return np.full(size_bytes // 8, fill)


def array_sum(array: Any) -> float:
    return float(array.sum())


def overwrite(array: Any, value: float = -1.0) -> float:
    """Writes into its own argument, as code does that grew up on threads; gives the sum of what was there before."""
    before = float(array.sum())
    array[...] = value
    return before


# --- where am I -------------------------------------------------------------------------------------------------------


def get_pid(*_ignored: Any) -> int:
    return os.getpid()


def get_environment(name: str, *_ignored: Any) -> str | None:
    return os.environ.get(name)


def get_modules(*_ignored: Any) -> list[str]:
    """The names of the modules imported in the process where it runs."""
    return sorted(sys.modules)


# --- meeting and counting ---------------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], Any], what: str = "the condition", timeout_s: float = 20.0) -> None:
    """Waits until ``condition()`` is true, looking every few milliseconds.

    Raises:
        TimeoutError: it was not true within ``timeout_s``.
    """
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"{what} did not come true within {timeout_s} s")
        time.sleep(0.002)


def count_attempt(log: str | Path) -> int:
    """Notes in the file ``log`` that somebody was here; gives how often that happened so far, this time included."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, f"{os.getpid()}\n".encode())
    finally:
        os.close(descriptor)
    return attempts(log)


def attempts(log: str | Path) -> int:
    """How often :func:`count_attempt` was called with this file."""
    return len(attempt_pids(log))


def attempt_pids(log: str | Path) -> list[int]:
    """The processes in which :func:`count_attempt` was called with this file, in order."""
    path = Path(log)
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def meet(directory: str | Path, me: str, other: str, timeout_s: float = 20.0) -> str:
    """Returns only if a task that calls itself ``other`` runs at the same time: proof that both run in parallel."""
    folder = Path(directory)
    (folder / me).touch()
    wait_until((folder / other).exists, f"the start of {other}", timeout_s)
    return me


def hold(directory: str | Path, name: str = "task", timeout_s: float = 60.0) -> str:
    """Creates ``<name>.started`` in the directory, then runs until ``<name>.go`` is there (see :func:`let_go`)."""
    folder = Path(directory)
    (folder / f"{name}.started").touch()
    wait_until((folder / f"{name}.go").exists, f"permission for {name}", timeout_s)
    return name


def wait_for_start(directory: str | Path, name: str = "task", timeout_s: float = 20.0) -> None:
    """Waits until the task that called :func:`hold` with this name runs."""
    wait_until((Path(directory) / f"{name}.started").exists, f"the start of {name}", timeout_s)


def let_go(directory: str | Path, name: str = "task") -> None:
    """Lets the task that called :func:`hold` with this name return."""
    (Path(directory) / f"{name}.go").touch()


# --- failing ----------------------------------------------------------------------------------------------------------


class TaskError(Exception):
    """What failing tasks raise: no other code does."""


def fail(message: str = "failed on purpose", *_ignored: Any) -> Any:
    raise TaskError(message)


def fail_first(log: str | Path, times: int, result: Any = "survived") -> Any:
    """Raises on the first ``times`` attempts, counted in the file ``log``."""
    if count_attempt(log) <= times:
        raise TaskError(f"attempt {attempts(log)} failed on purpose")
    return result


def raise_system_exit(code: int = 3) -> Any:
    sys.exit(code)


def raise_keyboard_interrupt() -> Any:
    raise KeyboardInterrupt


class LockedError(Exception):
    """An exception that cannot be pickled: it holds a lock."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class UnloadableError(Exception):
    """An exception that can be pickled but not unpickled: its constructor wants more than ``args`` holds."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def fail_unpicklable() -> Any:
    raise LockedError("holds a lock")


def fail_unloadable() -> Any:
    raise UnloadableError("wants a code", 5)


# --- what cannot travel -----------------------------------------------------------------------------------------------


class Holder:
    """An object with one attribute, ``inner``, for paths such as ``args[1]['lock'].inner``."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


def make_unpicklable(*_ignored: Any) -> dict[str, Holder]:
    """A result that cannot leave its process; the culprit is at ``['lock'].inner``."""
    return {"lock": Holder(threading.Lock())}


class Unloadable:
    """Pickles well; unpickling raises :class:`TaskError`."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return fail, ("cannot be unpickled",)


def make_unloadable(*_ignored: Any) -> Unloadable:
    return Unloadable()


# --- side effects on the process --------------------------------------------------------------------------------------


def print_lines(text: str, error: bool = False) -> int:
    print(text, file=sys.stderr if error else sys.stdout, flush=True)
    return len(text)


def change_directory(directory: str | Path) -> str:
    os.chdir(directory)
    return os.getcwd()


def start_thread(result: Any) -> Any:
    """Starts a thread, lets it compute the result and joins it."""
    box: list[Any] = []
    thread = threading.Thread(target=box.append, args=(result,))
    thread.start()
    thread.join()
    return box[0]


def fork_child(code: int = 7) -> int:
    """Forks, lets the child leave with an exit code and gives that back."""
    child = os.fork()
    if child == 0:
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- crashing ---------------------------------------------------------------------------------------------------------


def crash(how: CrashKind, *_ignored: Any) -> Any:
    """Ends this process in the given way (``exit`` and ``raise`` only as far as the caller lets the exception pass)."""
    if how == "exit":
        sys.exit(CRASH_EXIT_CODE)
    elif how == "c_exit":
        ctypes.CDLL(None)._exit(CRASH_EXIT_CODE)
    elif how == "segfault":
        _dump_no_core()
        ctypes.string_at(0)
    elif how == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise TaskError("crashed on purpose")


def crash_first(how: CrashKind, log: str | Path, times: int = 1, result: Any = "survived") -> Any:
    """Crashes on the first ``times`` attempts, counted in the file ``log``; then gives ``result``."""
    if count_attempt(log) <= times:
        crash(how)
    return result


class _Crasher:
    def __init__(self, how: CrashKind, log: str | Path, times: int = 1, spare: int = 0) -> None:
        self.how: CrashKind = how
        self.log = str(log)
        self.times = times
        self.spare = spare


class CrashAtPickle(_Crasher):
    """Crashes whoever pickles it, as often as :func:`crash_first` says, except in the process ``spare``."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if os.getpid() == self.spare:
            return CrashAtPickle, (self.how, self.log, self.times, self.spare)
        return identity, (crash_first(self.how, self.log, self.times),)


class CrashAtUnpickle(_Crasher):
    """Crashes whoever unpickles it, as often as :func:`crash_first` says, except in the process ``spare``.

    Unpickled in the process ``spare`` it is itself again; anywhere else, after the last crash, ``"survived"``.
    """

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _load_crash, (self.how, self.log, self.times, self.spare)


def _load_crash(how: CrashKind, log: str, times: int, spare: int) -> Any:
    if os.getpid() == spare:
        return CrashAtUnpickle(how, log, times, spare)
    return crash_first(how, log, times)


def make_crash_at_pickle(how: CrashKind, log: str | Path, times: int = 1, spare: int = 0) -> CrashAtPickle:
    """A result that crashes the worker while it is pickled."""
    return CrashAtPickle(how, log, times, spare)


def make_crash_at_unpickle(how: CrashKind, log: str | Path, times: int = 1, spare: int = 0) -> CrashAtUnpickle:
    """A result that crashes whoever receives it."""
    return CrashAtUnpickle(how, log, times, spare)


def _dump_no_core() -> None:
    """A core file in the test's directory would be a file left behind."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
