"""The ``headrace`` command. Subcommands come from installed packages, by the entry point group ``headrace.commands``.

An entry point names a function ``main(argv) -> exit code``; the first line of its module's docstring is its help. Only
the subcommand that is asked for is imported. Built in: ``headrace status`` and ``headrace --version``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from headrace import __version__

GROUP = "headrace.commands"
USAGE = "usage: headrace [--version] [--help] COMMAND ..."
SHOWN = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name in ("-V", "--version"):
        print(f"headrace {__version__}")
        return 0
    if name == "status":
        return _status(arguments[1:])
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        print(f"headrace: no command {name!r}; there are: {', '.join(sorted({*found, 'status'}))}", file=sys.stderr)
        return 2
    try:
        command: Callable[[list[str]], int] = found[name].load()
    except ImportError as error:
        print(f"headrace {name}: {error}; its package's extra is not installed: {_extra(found[name])}", file=sys.stderr)
        return 2
    try:
        return command(arguments[1:])
    except KeyboardInterrupt:
        return 130


def _extra(point: EntryPoint) -> str:
    package = point.dist.name if point.dist else "headrace"
    return f"pip install '{package}[{point.name}]'"


def _help() -> str:
    points = sorted(entry_points(group=GROUP))
    width = max(len(name) for name in ("status", *(point.name for point in points)))
    status = "workers, queues, what each task waits for, and the store, of every process of yours"
    lines = [USAGE, "", "commands:", f"  {'status':{width}}  {status}"]
    for point in points:
        try:
            summary = _summary(point.load().__module__)
        except Exception as error:  # a broken plug-in must not take the help away
            summary = f"(cannot be loaded: {error})"
        lines.append(f"  {point.name:{width}}  {summary}")
    return "\n".join([*lines, "", "headrace COMMAND --help tells more of each."])


def _summary(module: str) -> str:
    text = (sys.modules[module].__doc__ or "").strip().splitlines()
    return text[0].partition(": ")[2] or text[0] if text else ""


def _status(arguments: Sequence[str]) -> int:
    """Prints the state of every runtime on this machine that this user may look at, or of the processes named."""
    import argparse
    import json

    from headrace.observe.status import read_status

    parser = argparse.ArgumentParser(
        prog="headrace status", description="Shows what Headrace does in processes of yours."
    )
    parser.add_argument("pid", nargs="*", type=int, help="show these processes only")
    parser.add_argument("--json", action="store_true", help="all there is to know, for programs")
    options = parser.parse_args(arguments)
    states = [state for state in read_status() if not options.pid or state["pid"] in options.pid]
    if options.json:
        print(json.dumps(states, indent=1))
    elif not states:
        print("no such process of yours has run anything with Headrace")
    else:
        width = shutil.get_terminal_size((10_000, 0)).columns  # piped, lines are whole
        for state in states:
            try:
                lines = [f"process {state['pid']}: {state['error']}"] if "error" in state else _describe(state)
            except (KeyError, TypeError):  # published by a process with another version of Headrace
                lines = [f"process {state['pid']}: runs another version of Headrace; try --json"]
            print("\n".join(line[:width] for line in lines))
    return 0


def _describe(state: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{count} {name}" for name, count in state["tasks"].items() if count) or "none"
    lines = [f"process {state['pid']}: {state['settings']['num_workers']} at once; tasks: {counts}"]
    for job in state["jobs"]:
        lines.append(f"  job {job['job']}: lane {job['lane']}, {job['wanted']} results to come, {job['tasks']} tasks")
    lines += [f"  slot {slot['slot']} runs {_some(slot['runs'])}" for slot in state["slots"] if slot["runs"]]
    for worker in state["workers"]:
        doing = f"runs {worker['runs']}" if worker["runs"] else "idle"
        doing = doing if worker["up"] else "is starting"
        process = f"worker {worker['worker']} (process {worker['pid']}, {worker['rss_bytes'] >> 20} MiB)"
        lines.append(f"  {process} {doing}, {worker['queued']} queued, holds {worker['holds']} results")
    lines += [f"  {task['task']} is {task['state']}, waits for {task['for']}" for task in state["waiting"][:SHOWN]]
    hidden = len(state["waiting"]) - SHOWN
    if hidden > 0:
        lines.append(f"  and at least {hidden} more that wait")
    if store := state["store"]:
        lines.append(f"  store: {store['values']} values published, {store['published_bytes'] >> 20} MiB shared")
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


if __name__ == "__main__":
    sys.exit(main())
