"""What a worker does about the process around it: search path, working directory, output."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn


def follow_owner(path: list[str], directory: str | None) -> None:
    """Takes over the owner's ``sys.path`` and working directory."""
    sys.path[:] = path
    if directory is not None:
        try:
            os.chdir(directory)
        except OSError:
            pass  # it was removed; whoever needs it will say so


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
