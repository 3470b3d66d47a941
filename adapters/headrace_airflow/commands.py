"""``airflow headrace status | drain | resume | evict | stop | store``: what a node does, and what it shall do."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from headrace_airflow import client
from headrace_airflow.wire import Message


def commands() -> list[Any]:
    """The commands, as Airflow's command line takes them."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

    team = Arg(("--team",), help="the daemon of this team's executor, instead of the one that is no team's")
    as_json = Arg(("--json",), help="print JSON", action="store_true")
    to_collect = Arg(
        ("--collect",),
        help="first give up values that no row of the database refers to, because it was deleted through the REST API",
        action="store_true",
    )
    actions = [
        ("status", status, "Show the daemon of this node: its tasks and what it holds", (as_json, team)),
        ("drain", drain, "Start no further task; what runs goes on", (team,)),
        ("resume", resume, "Start tasks again after a drain", (team,)),
        ("evict", evict, "Let go of all parsed DAG files; they are parsed again when needed", (team,)),
        ("stop", stop, "End the daemon, and with it what runs", (team,)),
        ("store", store, "Show what HeadraceXCom holds on this node, by DAG run", (as_json, to_collect)),
    ]
    return [
        GroupCommand(
            name="headrace",
            help="Look at and control the Headrace daemon of this node",
            subcommands=[ActionCommand(name=n, help=h, func=f, args=a) for n, f, h, a in actions],
        )
    ]


def status(args: Any) -> None:
    """Prints what the daemon says of itself."""
    answer = _ask(args, {"t": "status"})
    if args.json:
        _print(json.dumps(answer, indent=2))
        return
    limits = answer["limits"]
    _print(
        f"daemon {answer['pid']}, up {time.time() - answer['since']:.0f} s, {answer['schedulers']} scheduler(s), "
        f"{len(answer['supervisors'])} supervisor(s)"
        + (", drained" if answer["drained"] else "")
        + (", outdated: ends when nothing runs" if answer["outdated"] else "")
    )
    _print(f"limits: {limits['cpus']:g} cpus, {limits['memory_bytes'] / 2**30:.1f} GiB, {limits['tasks']} tasks")
    for task in answer["tasks"]:
        age = time.time() - task["since"]
        why = f"  waits for {task['waits_for']}" if task["waits_for"] else ""
        _print(
            f"  {task['state']:9} {age:7.1f} s  {task['cpus']:4.1f} cpus  pid {task['pid'] or '-'}  {task['name']}{why}"
        )
    for ahead in answer["ahead"]:
        _print(f"  {ahead['state']:9} ahead of its task  {'.'.join(ahead['instance'])}")
    for zygote in answer["zygotes"]:
        name = "bare" if zygote["file"] is None else f"{zygote['file'][0]}: {zygote['file'][2]}"
        _print(f"  zygote {zygote['pid']}  {name}" + (f"  not held: {zygote['unfit']}" if zygote["unfit"] else ""))


def drain(args: Any) -> None:
    """Has the daemon start no further task."""
    _ask(args, {"t": "drain", "on": True})


def resume(args: Any) -> None:
    """Has the daemon start tasks again."""
    _ask(args, {"t": "drain", "on": False})


def evict(args: Any) -> None:
    """Has the daemon let go of its zygotes."""
    _print(f"{_ask(args, {'t': 'evict'})['count']} DAG file(s) let go")


def stop(args: Any) -> None:
    """Ends the daemon."""
    _ask(args, {"t": "stop"})


def store(args: Any) -> None:
    """Prints what the XCom store holds."""
    from headrace_airflow import xcom_admin

    if args.collect:
        from airflow.utils.session import create_session

        with create_session() as session:
            count = xcom_admin.collect(session)
        sys.stderr.write(f"{count} value(s) given up\n")
    _print(xcom_admin.show(as_json=args.json))


def _ask(args: Any, message: Message) -> Message:
    from headrace_airflow.executor import HeadraceExecutor

    executor = HeadraceExecutor(team_name=args.team) if args.team else HeadraceExecutor()
    channel = client.connect(executor.place, "command")
    if channel is None:
        of_team = f" and the team {args.team}" if args.team else ""
        raise SystemExit(f"No Headrace daemon runs for this AIRFLOW_HOME and database{of_team}")
    answer = client.ask(channel, message)
    channel.close()
    if answer is None:
        raise SystemExit("The Headrace daemon does not answer")
    return answer


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
