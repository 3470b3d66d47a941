"""The owner's io thread: starts workers, hears what they say, notices their death, looks at the clock.

::

    requests (launch) ─┐
    sockets  ──────────┼─► selector ──► Receiver ──► host.post
    pid descriptors ───┤
    clock ─────────────┘

It starts the workers because the kernel kills them when the thread that started them ends: it lives with the lane.
A death is reported once everything that the worker had said before was handled.
"""

from __future__ import annotations

import functools
import os
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from headrace.background import Background
from headrace.errors import NOT_STARTED
from headrace.lanes.processes import launcher
from headrace.lanes.processes.host import Host
from headrace.lanes.processes.peer import NEVER, NOW, Peer
from headrace.lanes.processes.receiver import Receiver
from headrace.sched.events import WorkerDied, WorkersIdled

_SAMPLE_S: Final = 0.5
_LEAST_TICK_S: Final = 0.01
_MOST_TICK_S: Final = 0.25
"""What waits behind a task that takes unexpectedly long is noticed at a tick, and only then goes to an idle worker."""
Doing = Callable[[], None]


class IoThread:
    """The thread and what it looks after.

    Args:
        host: is told the events.
        receiver: handles messages.
        flush: sends what is queued at a worker.
        tend: called now and then while there are workers.
        bury: called with a dead worker, how it ended, and its memory, before ``WorkerDied`` is posted.
        idle_timeout_s: the time between two ``WorkersIdled`` is a quarter of it, at most 0.25 s.
    """

    def __init__(
        self,
        host: Host,
        receiver: Receiver,
        flush: Callable[[Peer], bool],
        tend: Callable[[], None],
        bury: Callable[[Peer, str, int], None],
        idle_timeout_s: float,
    ) -> None:
        self._host = host
        self._receiver = receiver
        self._flush = flush
        self._tend = tend
        self._bury = bury
        self._tick_s = max(_LEAST_TICK_S, min(_MOST_TICK_S, idle_timeout_s / 4))
        self._peers: dict[int, Peer] = {}
        self._requests: deque[Doing] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._woken)
        self._closing = False
        self._thread = Background(self._run, "headrace-io")
        self._next_tick_s = self._next_sample_s = 0.0

    def start(self) -> None:
        """Starts the thread, unless it runs or the lane is closed; under no lock."""
        self._thread.start()

    def ask(self, doing: Doing) -> None:
        """Has the thread do something soon. Thread-safe, never blocks."""
        self._requests.append(doing)
        try:
            os.write(self._wake_write, b"!")
        except (BlockingIOError, OSError):
            pass  # the pipe is full of wake-ups, or closed because the lane is

    def launch(self, peer: Peer) -> None:
        """Has a worker started."""
        self.ask(lambda: self._launch(peer))

    def watch_writable(self, peer: Peer) -> None:
        """The worker's socket is full: the thread sends the rest once there is room."""
        self.ask(lambda: self._watch(peer, selectors.EVENT_READ | selectors.EVENT_WRITE))

    def close(self, timeout_s: float) -> None:
        """Kills all workers and ends; waits no longer than this for the thread."""
        self._closing = True
        if self._thread.cancel():
            self.let_go()
        else:
            self.ask(lambda: None)
            self._thread.join(timeout_s)

    # --- inside the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for key, mask in self._selector.select(self._patience_s()):
                self._guarded(functools.partial(key.data, mask))
            while self._requests:
                self._guarded(self._requests.popleft())
            if self._peers:
                self._guarded(self._look_at_clock)
        self._end()

    def _guarded(self, doing: Doing) -> None:
        """A bug of ours, or of an observer, must not end this thread: then everything would wait for ever."""
        try:
            doing()
        except BaseException as error:  # see above; and what is closed under a thread that ends is no bug
            if not self._closing:
                sys.excepthook(type(error), error, error.__traceback__)

    def _patience_s(self) -> float | None:
        if not self._peers:
            return None
        now_s = time.monotonic()
        kill_at_s = min(peer.kill_at_s for peer in self._peers.values())
        return max(0.0, min(self._next_tick_s, self._next_sample_s, kill_at_s) - now_s)

    def _woken(self, _mask: int) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass

    def _look_at_clock(self) -> None:
        now_s = time.monotonic()
        for peer in list(self._peers.values()):
            if now_s >= peer.kill_at_s:
                peer.kill_at_s = NEVER
                peer.kill()
        if now_s >= self._next_sample_s:
            self._next_sample_s = now_s + _SAMPLE_S
            for peer in self._peers.values():
                peer.sample_memory()
            self._tend()
        if now_s >= self._next_tick_s:
            self._next_tick_s = now_s + self._tick_s
            self._host.post(WorkersIdled())

    def _launch(self, peer: Peer) -> None:
        if self._closing or peer.dead:  # given up before there was this thread
            return
        if not self._peers:
            self._next_tick_s = time.monotonic() + self._tick_s
        try:
            if peer.kill_at_s == NOW:
                raise InterruptedError("it was stopped before")
            peer.environment = dict(os.environb)  # before the worker gets it: what changes meanwhile is told again
            peer.link = launcher.launch(peer.number)
        except Exception as error:  # no process, no descriptor, no memory, no interpreter: the error says which
            peer.dead = True
            self._bury(peer, f"{NOT_STARTED}: {error}", 0)
            self._host.post(WorkerDied(peer.number, None, peer.stopping))
            return
        self._peers[peer.number] = peer
        self._selector.register(peer.link.process.pid_fd, selectors.EVENT_READ, lambda _: self._end_of(peer))
        self._selector.register(peer.link.channel, selectors.EVENT_READ, lambda mask: self._hear(peer, mask))
        self._flush(peer)

    def _watch(self, peer: Peer, events: int) -> None:
        if peer.link is not None and peer.link.channel in self._watched():
            self._selector.modify(peer.link.channel, events, lambda mask: self._hear(peer, mask))

    def _watched(self) -> set[Any]:
        return {key.fileobj for key in self._selector.get_map().values()}

    def _hear(self, peer: Peer, mask: int) -> None:
        link = peer.link
        if link is None:
            return
        if mask & selectors.EVENT_WRITE and link.channel.pump():
            self._watch(peer, selectors.EVENT_READ)
            self._flush(peer)
        if mask & selectors.EVENT_READ:
            try:
                ops, ended = link.channel.receive()
                self._receiver.handle(peer, ops)
            except BaseException as error:
                # Whatever went wrong (perhaps no descriptor is left): nobody knows what it has said, so it goes.
                peer.unheard = str(error) or type(error).__name__
                self._selector.unregister(link.channel)
                peer.kill()
                raise
            if ended:
                # It says nothing any more: dead, as the other descriptor will tell, or as good as dead.
                self._selector.unregister(link.channel)
                peer.kill()
            if peer.outbox:
                self._flush(peer)

    def _end_of(self, peer: Peer) -> None:
        """The process has ended."""
        link = peer.link
        assert link is not None
        self._selector.unregister(link.process.pid_fd)
        if link.channel in self._watched():
            self._selector.unregister(link.channel)
        del self._peers[peer.number]
        last_words = []
        while not peer.unheard:
            ops, ended = link.channel.receive()
            last_words += ops
            if ended or not ops:
                break
        try:
            self._guarded(lambda: self._receiver.handle(peer, last_words))
        finally:
            running = peer.blamed_task()
            expected = peer.stopping
            reason, rss_bytes = peer.reap()
            if peer.unheard:
                reason = f"{reason}, as what it said could not be read: {peer.unheard}"
            elif not peer.started and not expected:
                reason = f"{NOT_STARTED}: {reason} before it was ready"
            peer.close()
            self._bury(peer, reason, rss_bytes)
        self._host.post(WorkerDied(peer.number, running, expected))

    def _end(self) -> None:
        for peer in self._peers.values():
            peer.kill()
        for peer in self._peers.values():
            peer.reap()
            peer.close()
        self._peers.clear()
        self.let_go()

    def let_go(self) -> None:
        """Closes its own descriptors: at the end, or if there is no thread (never started, or in a forked child)."""
        # Forgotten at once: a number that was closed may be somebody else's descriptor a moment later.
        selector, wake, self._wake_write = self._selector, (self._wake_read, self._wake_write), -1
        selector.close()
        for fd in wake:
            os.close(fd)
