"""Who is connected to the daemon, what schedulers among them are told of it, and whether one would start one like it.

A daemon runs tasks with the environment, the settings and the packages that it was started with. Each scheduler says by
a fingerprint what it would start one with (``client.Setup``). When all that are there would start another one, the
daemon is outdated; one that says nothing would start the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from headrace_airflow.wire import Channel, Message

_MOST_UNSENT: Final = 10_000
"""A client that leaves so many messages unread is dropped, as if it had gone."""


class Clients:
    """Their connections; who serves and closes these is the daemon.

    Args:
        fingerprint: of what the daemon was started with.
    """

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._fingerprints: dict[Channel, str | None] = {}
        """Of what each scheduler would start a daemon with; ``None``: it is no scheduler, or has not said so yet."""
        self._room: Message = {"t": "room", "full": False, "drained": False}

    def __iter__(self) -> Iterator[Channel]:
        return iter(list(self._fingerprints))

    def came(self, client: Channel) -> None:
        """Somebody has connected."""
        self._fingerprints[client] = None

    def said_hello(self, client: Channel, hello: Message) -> None:
        """It has said what it is."""
        self._fingerprints[client] = hello.get("fingerprint", "") if hello["role"] == "scheduler" else None

    def tell_room(self, *, full: bool, drained: bool) -> None:
        """Has schedulers know what room the node has; those that come later hear of it where it is not all."""
        room = {"t": "room", "full": full, "drained": drained}
        if room != self._room:
            self._room = room
            for client in filter(self.is_scheduler, self._fingerprints):
                client.send(room)

    def welcome(self, client: Channel, *, ends: bool) -> None:
        """Answers who has said what it is; ``ends``: the daemon does, because of that."""
        client.send({"t": "welcome", "ends": ends})
        if self.is_scheduler(client):
            if self._room["full"] or self._room["drained"]:
                client.send(self._room)
            if self.find_daemon_outdated:
                client.send({"t": "outdated"})

    def left(self, client: Channel) -> None:
        """It is gone."""
        del self._fingerprints[client]

    def is_scheduler(self, client: Channel) -> bool:
        return self._fingerprints[client] is not None

    @property
    def schedulers(self) -> int:
        """How many of them are schedulers."""
        return sum(map(self.is_scheduler, self._fingerprints))

    @property
    def find_daemon_outdated(self) -> bool:
        """Whether there are schedulers, and none of them would start a daemon as this one was started."""
        came = {fingerprint for fingerprint in self._fingerprints.values() if fingerprint is not None}
        return bool(came) and not came & {self._fingerprint, ""}

    def deaf(self) -> list[Channel]:
        """Those that do not read what they are told."""
        return [client for client in self._fingerprints if client.unsent > _MOST_UNSENT]
