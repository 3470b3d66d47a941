"""What a worker does about the process around it: search path, working directory, environment, output."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, NoReturn


def follow_owner(path: list[str], directory: str | None) -> None:
    """Takes over the owner's ``sys.path`` and working directory."""
    sys.path[:] = path
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError:
            pass  # it was removed; whoever needs it will say so


def changed_variables(known: dict[bytes, bytes]) -> dict[bytes, bytes | None]:
    """What has changed in the environment since it was as in ``known``, which follows; ``None`` for what is gone."""
    environ: Any = os.environ
    variables = environ._data  # looked at for every message: through its own methods it takes ten times as long
    if variables == known:
        return {}
    now = dict(variables)
    changed = {name: now.get(name) for name in known | now if known.get(name) != now.get(name)}
    known.clear()
    known.update(now)
    return changed


def follow_environment(changed: dict[bytes, bytes | None]) -> None:
    """Takes over what has changed in the owner's environment; what tasks have changed in this one stays."""
    for name, value in changed.items():
        if value is None:
            os.environb.pop(name, None)
        else:
            os.environb[name] = value
    if b"TZ" in changed:
        time.tzset()


def directory() -> str | None:
    """The working directory, unless it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def write_lines_at_once() -> None:
    """Has what tasks print appear line by line, whole, and before a crash; into a pipe it would wait for 8 KiB."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper in a worker


def flush_output() -> None:
    """Writes what is left of incomplete lines."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # closed by a task, or nobody reads


def raise_again(error: BaseException, *_args: Any, **_kwargs: Any) -> NoReturn:
    """Stands in for a function that could not be unpickled."""
    raise error
