"""The processes lane: tasks run in worker processes, which are started once and stay warm.

::

    runtime ── run, publish, drop, revoke, stop ──► outbox of a worker ── flush: Sender ──► worker
       ▲                                                                                      │
       └── host.deliver, host.fail, host.post ◄── Receiver ◄── io thread ◄────────────────────┘

The methods that the runtime calls under its lock only take notes; :meth:`ProcessLane.flush` does the work, in whatever
thread calls it. Values and their memory: see publications.py. Nothing is decided here: which task runs where, and what
happens after a death, is the decision core's business.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Final

from headrace.config import Settings
from headrace.errors import NOT_STARTED
from headrace.lanes.processes import logged, warned, wire  # noqa: F401 - have their say in workers
from headrace.lanes.processes.host import Host
from headrace.lanes.processes.io_thread import IoThread
from headrace.lanes.processes.peer import NOW, Order, Peer
from headrace.lanes.processes.publications import Publications
from headrace.lanes.processes.receiver import Receiver
from headrace.lanes.processes.sender import Sender
from headrace.sched.events import WorkerDied

_MOST_OBITUARIES: Final = 1024

_lanes: weakref.WeakSet[ProcessLane] = weakref.WeakSet()


class ProcessLane:
    """Worker processes and one io thread. All methods are thread-safe.

    Args:
        settings: ``small_bytes`` and ``idle_timeout_s`` are used.
        host: who is asked for calls and values and told what happens; see :class:`headrace.lanes.processes.host.Host`.
    """

    def __init__(self, settings: Settings, host: Host) -> None:
        self._lock = threading.Lock()
        self._host = host
        self._peers: dict[int, Peer] = {}
        self._obituaries: dict[int, tuple[str, int]] = {}
        self._publications = Publications(settings.small_bytes, self._free, self._forget_place)
        self._sender = Sender(host, self._publications, settings.small_bytes)
        receiver = Receiver(host, self._publications)
        self._io = IoThread(host, receiver, self._flush_peer, self._tend, self._bury, settings.idle_timeout_s)
        self._closed = False
        _lanes.add(self)

    # --- notes for workers: cheap, called under the runtime's lock ----------------------------------------------------

    def launch(self, workers: Sequence[int], preimport: Sequence[str] = ()) -> None:
        """Has workers started with the next flush; each is announced by ``WorkerStarted``, or ``WorkerDied``.

        Args:
            workers: their numbers, never used before.
            preimport: modules that a worker imports before it is announced.
        """
        with self._lock:
            if self._closed:
                return
            for worker in workers:
                peer = self._peers[worker] = Peer(worker)
                peer.outbox.append((wire.PREIMPORT, list(preimport)))
                self._io.launch(peer)

    def prepare(self, worker: int, modules: Sequence[str]) -> None:
        """Has a worker import modules and then announce itself once more."""
        self._note(worker, (wire.PREIMPORT, list(modules)))

    def run(self, worker: int, tasks: Sequence[int]) -> None:
        """Appends tasks to a worker's queue."""
        self._note(worker, (wire.RUN, tasks))

    def publish(self, worker: int, task: int) -> None:
        """Has a worker publish a value that it holds; answered by ``ValuePublished`` or ``TaskUnpicklable``."""
        self._note(worker, (wire.PUBLISH, task))

    def drop(self, worker: int, tasks: Sequence[int]) -> None:
        """Has a worker forget values; what it has published of them is released too."""
        self._note(worker, (wire.DROP, tasks))

    def revoke(self, worker: int, tasks: Sequence[int]) -> None:
        """Asks a worker to give back tasks that it has not started; answered by ``TasksRevoked``."""
        self._note(worker, (wire.REVOKE, list(tasks)))

    def stop(self, worker: int, kill: bool = False) -> None:
        """Ends a worker after what is in its queue, or at once; ``WorkerDied`` follows, as expected."""
        peer = self._peers.get(worker)
        if peer is None:
            return
        peer.stopping = True
        if kill:
            peer.kill_at_s = NOW  # if it is only just being started
            peer.kill()
        else:
            peer.outbox.append((wire.STOP,))

    def _note(self, worker: int, order: Order) -> None:
        peer = self._peers.get(worker)
        if peer is not None:
            peer.outbox.append(order)

    # --- work ---------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Pickles and sends what was noted. Never waits for a worker; not to be called under the runtime's lock."""
        if self._peers:
            try:
                self._io.start()
            except RuntimeError as error:  # no thread is left for this process
                self._give_up(error)
        for peer in list(self._peers.values()):
            if peer.outbox:
                self._flush_peer(peer)

    def _give_up(self, error: RuntimeError) -> None:
        for peer in list(self._peers.values()):
            peer.dead = True
            self._bury(peer, f"{NOT_STARTED}: {error}", 0)
            self._host.post(WorkerDied(peer.number, None, peer.stopping))

    def _flush_peer(self, peer: Peer) -> bool:
        events, emptied = self._sender.drain(peer)
        if not emptied:
            self._io.watch_writable(peer)
        for event in events:
            self._host.post(event)
        return emptied

    def load(self, task: int) -> Any:
        """The value of a published object, mapped into this process.

        Raises:
            KeyError: it is not published.
            BaseException: whatever its unpickling raises.
        """
        return self._publications.load(task)

    def release(self, tasks: Iterable[int]) -> None:
        """Forgets publications and the workers' copies of these; memory is used again once nobody reads it."""
        tasks = list(tasks)
        self._publications.release(tasks)
        for peer in list(self._peers.values()):
            held = [task for task in tasks if task in peer.at]
            if held:
                peer.outbox.append((wire.DROP, held))

    def obituary(self, worker: int) -> tuple[str, int]:
        """How a dead worker ended, such as ``killed by SIGSEGV`` or ``exit code 3``, and its memory in bytes before."""
        return self._obituaries.get(worker, ("gone", 0))

    def status(self) -> list[dict[str, Any]]:
        """One entry a worker: its number, its process (None: not started yet), and its resident memory in bytes."""
        return [
            {
                "worker": peer.number,
                "pid": None if (link := peer.link) is None else link.process.pid,
                "rss_bytes": peer.rss_bytes,
            }
            for peer in list(self._peers.values())
        ]

    def store_status(self) -> dict[str, int]:
        """What is in shared memory."""
        return self._publications.status()

    def check(self) -> None:
        """Verifies the invariants of what is published (for tests)."""
        self._publications.check()

    def close(self, timeout_s: float = 5.0) -> None:
        """Kills every worker, ends the io thread and lets go of all memory. May be repeated."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._io.close(timeout_s)
        self._peers.clear()
        self._publications.close()

    def forget_in_child(self) -> None:
        """In a forked child: the lane is closed there, and the parent's workers know nothing of it."""
        if self._closed:
            return
        self._closed = True
        for peer in self._peers.values():
            peer.forget_in_child()
        self._peers.clear()
        self._io.let_go()
        self._publications.forget_in_child()

    # --- called back --------------------------------------------------------------------------------------------------

    def _free(self, place: int, offset: int) -> None:
        self._note(place, (wire.FREE, offset))

    def _forget_place(self, place: int) -> None:
        for peer in list(self._peers.values()):
            peer.outbox.append((wire.DETACH, place))

    def _tend(self) -> None:
        self._publications.tend()
        self.flush()

    def _bury(self, peer: Peer, reason: str, rss_bytes: int) -> None:
        while len(self._obituaries) >= _MOST_OBITUARIES:
            del self._obituaries[next(iter(self._obituaries))]
        self._obituaries[peer.number] = reason, rss_bytes
        self._peers.pop(peer.number, None)
        self._publications.worker_died(peer.number)
        if not self._peers:
            self._publications.trim()  # nobody will, for some time


def _forget_in_child() -> None:
    """A forked child has no io thread, and must not keep the workers' connections open when its parent dies."""
    for lane in list(_lanes):
        lane.forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)
