"""What a zygote knows of streams: who writes them, and which processes read them ahead of their task.

    producer ──{"t": "stream", id} + spool, control──▶ zygote ──{"t": "offer", …}──▶ daemon
    daemon ──{"t": "ahead", id} / {"t": "discard", id}──▶ zygote ──{"t": "ahead", id, state}──▶ daemon

A reader gets the spool and one end of a doorbell; the other end goes to the producer, over the control connection that
came with the stream. Bookkeeping only: the zygote forks.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.obituary import describe_exit
from headrace_airflow import candidates, wire
from headrace_airflow.ahead import STOPPED, Feed
from headrace_airflow.candidates import Candidate
from headrace_airflow.speculation import Instance
from headrace_airflow.wire import Channel


@dataclass(slots=True, eq=False)
class _Stream:
    """A stream, and who writes it: a task, or something ahead of one."""

    id: str
    feeder: str
    spool: int
    control: Channel

    def open(self) -> Feed:
        """For a reader that is about to be forked."""
        ours, theirs = socket.socketpair()
        self.control.send({"t": "reader"}, [theirs.fileno()])
        theirs.close()
        return Feed(self.id, self.spool, ours)

    def close(self) -> None:
        os.close(self.spool)
        self.control.close()


@dataclass(slots=True, eq=False)
class Follower:
    """A consumer that may run ahead."""

    id: str
    instance: Instance
    candidate: Candidate
    streams: dict[str, _Stream]
    """Task id → what it reads."""
    task: Channel | None = None
    """What it sends here, its task will find; there once it was forked."""
    pid: int = 0
    """0: it does not run."""
    feeds: dict[str, Feed] = field(default_factory=dict)


class Followers:
    """The streams and followers of one zygote.

    Args:
        daemon: is told.
        dag: a DAG by its id.
    """

    def __init__(self, daemon: Channel, dag: Callable[[str], Any]) -> None:
        self._daemon = daemon
        self._dag = dag
        self._streams: dict[Instance, _Stream] = {}
        self._known: dict[str, Follower] = {}
        self._stopped: set[tuple[str, str]] = set()
        """DAG and task of those that were contained, and have asked for more: they would do so again."""
        self._count = 0

    def stream_began(self, feeder: str, instance: Instance, id: str, fds: Sequence[int]) -> None:
        """Offers the daemon every consumer that could begin now; the descriptors stay the caller's."""
        dag = self._dag(instance.dag_id)
        operator = None if dag is None else dag.task_dict.get(instance.task_id)
        if operator is None or not candidates.may_feed(operator):
            return
        if (earlier := self._streams.pop(instance, None)) is not None:
            earlier.close()
        spool, control = map(os.dup, fds)
        self._streams[instance] = _Stream(id, feeder, spool, Channel(socket.socket(fileno=control)))
        of_run = {it.task_id: stream for it, stream in self._streams.items() if it[:2] == instance[:2]}
        for candidate in candidates.consumers(operator, of_run.keys()):
            of_consumer = instance._replace(task_id=candidate.operator.task_id)
            if not candidate.contained or (of_consumer.dag_id, of_consumer.task_id) not in self._stopped:
                streams = {task_id: of_run[task_id] for task_id in candidate.operator.upstream_task_ids}
                self._offer(Follower(self._new_id(), of_consumer, candidate, streams))

    def _new_id(self) -> str:
        self._count += 1
        return f"ahead-{os.getpid()}-{self._count}"

    def _offer(self, follower: Follower) -> None:
        self._known[follower.id] = follower
        needs = follower.candidate.needs
        self._daemon.send({
            "t": "offer", "id": follower.id, "instance": list(follower.instance),
            "feeders": [stream.feeder for stream in follower.streams.values()],
            "cpus": 1.0 if needs.cpus is None else needs.cpus, "memory_bytes": needs.memory_bytes,
        })  # fmt: skip

    def prepare(self, id: str) -> tuple[Follower, socket.socket] | None:
        """Makes everything that a follower has to have when it is forked; and its end of ``task``.

        ``None``: it is not known any more, or one of its streams is gone.
        """
        follower = self._known.get(id)
        live = self._streams.values()
        if follower is None or any(stream not in live for stream in follower.streams.values()):
            self.tell(id, "gone")
            self.drop(id)
            return None
        follower.feeds = {task_id: stream.open() for task_id, stream in follower.streams.items()}
        follower.task, theirs = wire.pair()
        return follower, theirs

    def forked(self, follower: Follower, pid: int) -> None:
        """It runs: what only it needs is closed here."""
        follower.pid = pid
        for feed in follower.feeds.values():
            feed.doorbell.close()
        follower.feeds.clear()

    def tell(self, id: str, state: str) -> None:
        """Tells the daemon that a follower is ``done`` or ``gone``."""
        self._daemon.send({"t": "ahead", "id": id, "state": state})

    def ended(self, id: str, code: int) -> None:
        """A follower's process has ended."""
        if (follower := self._known.get(id)) is not None:
            follower.pid = 0
            if code == 0:
                self.tell(id, "done")
            else:
                _say_why(follower, code)
                self.tell(id, "gone")
                self.drop(id)

    def contained_ended(self, instance: Instance, code: int) -> None:
        """What was contained has ended, ahead of a task or with it."""
        if code in (STOPPED, -signal.SIGSYS):
            self._stopped.add((instance.dag_id, instance.task_id))

    def take(self, id: str) -> Follower | None:
        """Hands a follower to its task, which closes ``task``."""
        return self._known.pop(id, None)

    def drop(self, id: str) -> int:
        """Forgets a follower and its stream; returns its pid, 0: it does not run."""
        follower = self._known.pop(id, None)
        self.forget_streams({id})
        if follower is None:
            return 0
        if follower.task is not None:
            follower.task.close()
        return follower.pid

    def forget_streams(self, feeders: set[str]) -> None:
        """These will feed nobody else."""
        for instance, stream in list(self._streams.items()):
            if stream.feeder in feeders:
                del self._streams[instance]
                stream.close()

    def pids(self) -> list[int]:
        """Of the followers that nobody has taken."""
        return [follower.pid for follower in self._known.values() if follower.pid]

    def leave(self, kept: Collection[int] = ()) -> None:
        """In a child: closes what is the zygote's, but for these descriptors."""
        for stream in self._streams.values():
            stream.control.close()
            if stream.spool not in kept:
                os.close(stream.spool)
        for follower in self._known.values():
            if follower.task is not None:
                follower.task.close()


def _say_why(follower: Follower, code: int) -> None:
    """Tells the daemon's log: no task will find it any more."""
    assert follower.task is not None  # it was forked
    told = next((message["why"] for message, _ in follower.task.receive() if "why" in message), describe_exit(code))
    name = f"{follower.instance.dag_id}.{follower.instance.task_id}"
    sys.stderr.write(f"headrace zygote: {name} has not run ahead to its end: {told}\n")
    sys.stderr.flush()
