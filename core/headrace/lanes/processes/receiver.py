"""Turns what a worker says into what the host is told: values delivered, failures, events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from headrace.errors import RemoteTraceback
from headrace.lanes.processes import wire
from headrace.lanes.processes.failures import explain_unpicklable, name_result, revive_failure
from headrace.lanes.processes.host import Host
from headrace.lanes.processes.parcels import Parcel, open_whole
from headrace.lanes.processes.peer import HELD, Peer
from headrace.lanes.processes.publications import Publications
from headrace.lanes.processes.wire import Op
from headrace.sched.events import (
    Span,
    TaskRaised,
    TasksRevoked,
    TaskUnpicklable,
    ValuePublished,
    WorkerRan,
    WorkerStarted,
)

LEAVE_WITHIN_S: Final = 5.0
"""A worker that was told to stop is killed if it takes longer: a task may have left something that never ends."""


class Receiver:
    """Handles messages of all workers; for one thread."""

    def __init__(self, host: Host, publications: Publications) -> None:
        self._host = host
        self._publications = publications
        self._handlers: dict[int, Callable[..., None]] = {
            wire.HELLO: self._hello,
            wire.FAILED: self._failed,
            wire.UNPICKLABLE: self._unpicklable,
            wire.STREAMS: self._streams,
            wire.PUBLISHED: self._published,
            wire.REVOKED: self._revoked,
            wire.SAID: lambda peer, task, companion, said: self._host.said(task, companion, said),
            wire.LEAVING: self._leaving,
            wire.CLOSED: lambda peer, segments: self._publications.closed(peer.number, segments),
        }

    def handle(self, peer: Peer, ops: Iterable[tuple[Op, list[int]]]) -> None:
        """Handles ops in order; successes that follow each other become one event."""
        spans: list[Span] = []
        arrived: list[int] = []
        failed: list[int] = []
        at, deliver = peer.at, self._host.deliver
        for op, descriptors in ops:
            code = op[0]
            if code == wire.RAN:
                _, fields, how, value = op
                span = Span._make(fields)
                task = span.task
                if how == wire.PARCELLED:
                    try:
                        value = open_whole(value)
                    except BaseException as error:  # it runs users' code, which may raise anything, in the io thread
                        name_result(error, self._host.key_of(task))
                        self._host.fail(task, error)
                        failed.append(task)
                        continue
                if how != wire.NOTHING:
                    deliver(task, value)
                    arrived.append(task)
                if task in at:
                    at[task] = HELD
                spans.append(span)
                continue
            if spans or failed:
                self._report(peer, spans, arrived, failed)
                spans, arrived, failed = [], [], []
            if code == wire.ARENA:
                self._publications.attach(peer.number, descriptors.pop(0))
            else:
                self._handlers[code](peer, *op[1:])
        if spans or failed:
            self._report(peer, spans, arrived, failed)

    def _report(self, peer: Peer, spans: list[Span], arrived: list[int], failed: list[int]) -> None:
        if spans:
            self._host.post(WorkerRan(peer.number, spans, arrived))
        if failed:
            # The value is at the worker, but nobody can read it. As when it cannot be pickled, it may be made here.
            peer.outbox.append((wire.DROP, failed))
            for task in failed:
                self._host.post(TaskUnpicklable(task, peer.number))

    def _hello(self, peer: Peer) -> None:
        peer.started = True
        peer.sample_memory()  # so that something is known of one that dies young
        self._host.post(WorkerStarted(peer.number))

    def _leaving(self, peer: Peer) -> None:
        peer.kill_at_s = time.monotonic() + LEAVE_WITHIN_S

    def _failed(self, peer: Peer, task: int, failure: Any, began: bool) -> None:
        peer.at.pop(task, None)
        self._host.fail(task, revive_failure(failure))
        self._host.post(TaskRaised(task, peer.number) if began else TaskUnpicklable(task, peer.number))

    def _unpicklable(self, peer: Peer, task: int, message: str, trace: str, must_stay: bool) -> None:
        peer.at.pop(task, None)
        key = self._host.key_of(task)
        self._host.fail(task, explain_unpicklable(message, key, RemoteTraceback(trace), must_stay))
        self._host.post(TaskUnpicklable(task, peer.number, must_stay))

    def _streams(self, peer: Peer, task: int) -> None:
        """Its thread here will find a stage process for it."""
        peer.at.pop(task, None)
        self._host.post(TaskUnpicklable(task, peer.number, must_stay=True))

    def _published(self, peer: Peer, task: int, parcel: Parcel, reads: bool) -> None:
        self._publications.published(task, peer.number, parcel, reads)
        if task in peer.at:
            self._host.post(ValuePublished(task, peer.number))
        else:
            self._publications.release((task,))  # it was dropped while it was on its way

    def _revoked(self, peer: Peer, tasks: list[int]) -> None:
        for task in tasks:
            peer.at.pop(task, None)
        self._host.post(TasksRevoked(peer.number, tasks))
