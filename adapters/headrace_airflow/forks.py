"""The daemon's view of the origin: asks it for supervisors, zygotes and the pulse, and hears what became of them.

When the origin is gone, everything it had forked is gone with it; it is started anew, unless it never came up.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from headrace_airflow import wire
from headrace_airflow.loop import Loop
from headrace_airflow.wire import Channel, Message

_BOOTSTRAP: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from headrace_airflow.origin import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


@dataclass(slots=True, eq=False)
class Child:
    """A process that was asked for."""

    channel: Channel
    exited: Callable[[int], None]
    """Called once, with its exit code (negative: a signal; ``EX_OSERR``: it could not be forked), after everything that
    it had sent was heard."""
    pid: int = 0
    """0 until the origin has forked it."""


class Forks:
    """Starts the origin at once.

    Args:
        loop: where its connections are served.
        lost: called with the origin's exit code when it is gone, after its children's ``exited``.
        descriptors: how many a child may have open, and how many it may allow itself.
    """

    def __init__(self, loop: Loop, lost: Callable[[int], None], descriptors: tuple[int, int]) -> None:
        self._loop = loop
        self._lost = lost
        self._descriptors = descriptors
        self._children: list[Child] = []
        self.ready = False
        """Whether the origin has imported what it needs."""
        self.alive = True
        """Whether there is an origin."""
        self._start()

    def _start(self) -> None:
        self.ready = False
        self._origin, theirs = wire.pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, self._descriptors)
        self._loop.listen(self._origin, self._hear, self._gone)

    @property
    def pid(self) -> int:
        """The origin's."""
        return self._process.pid

    def fork(
        self,
        kind: Literal["supervisor", "zygote", "pulse"],
        hear: Callable[[Message, list[int]], None],
        exited: Callable[[int], None],
    ) -> Child:
        """Asks for a process; it can be sent messages at once.

        Args:
            kind: what it shall be.
            hear: called with its messages and the descriptors that come with them, to be closed.
            exited: see ``Child``.
        """
        channel, theirs = wire.pair()
        child = Child(channel, exited)
        self._children.append(child)
        self._loop.listen_with(channel, hear, lambda: None)
        self._origin.send({"t": "fork", "kind": kind, "id": id(child)}, [theirs.fileno()])
        theirs.close()
        return child

    def kill(self, child: Child) -> None:
        """Ends a child at once; ``exited`` follows."""
        if child.pid:
            try:
                os.kill(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        else:
            self._loop.forget(child.channel)  # it finds nobody there when it begins

    def close(self) -> None:
        """Kills the origin, and with it everything that it has forked."""
        self._loop.forget(self._origin)
        self._process.kill()
        self._process.wait()

    def _hear(self, message: Message) -> None:
        match message["t"]:
            case "ready":
                self.ready = True
            case "forked":
                self._asked_for(message["id"]).pid = message["pid"]
            case "refused":
                self._end(self._asked_for(message["id"]), os.EX_OSERR)
            case "exit":
                child = next(child for child in self._children if child.pid == message["pid"])
                self._end(child, message["code"])

    def _asked_for(self, number: int) -> Child:
        return next(child for child in self._children if id(child) == number)

    def _end(self, child: Child, code: int) -> None:
        self._children.remove(child)
        self._loop.serve(child.channel)
        self._loop.forget(child.channel)
        child.exited(code)

    def _gone(self) -> None:
        code = self._process.wait()
        self.alive = self.ready
        children, self._children = self._children, []
        if self.alive:  # otherwise it would not come up the next time either
            self._start()
        for child in children:
            self._loop.serve(child.channel)
            self._loop.forget(child.channel)
            child.exited(-signal.SIGKILL)
        self._lost(code)
