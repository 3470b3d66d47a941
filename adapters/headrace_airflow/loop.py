"""The daemon's event loop: channels, other descriptors, and a tick."""

from __future__ import annotations

import os
import selectors
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace_airflow.wire import Channel, Message


@dataclass(slots=True)
class _Listener:
    hear: Callable[[Message, list[int]], None]
    gone: Callable[[], None]


class Loop:
    """Calls back; never blocks but in ``turn``. Single-threaded."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, fileobj: Any, ready: Callable[[], None]) -> None:
        """Has ``ready`` called while ``fileobj`` is readable."""
        self._selector.register(fileobj, selectors.EVENT_READ, ready)

    def unwatch(self, fileobj: Any) -> None:
        """Ends what ``watch`` began; ``fileobj`` must still be open."""
        self._selector.unregister(fileobj)

    def listen(self, channel: Channel, hear: Callable[[Message], None], gone: Callable[[], None]) -> None:
        """Has messages of a channel handed to ``hear`` (descriptors that come with them are closed).

        When its peer is gone the channel is closed, and ``gone`` is called; not after ``forget``.
        """

        def hear_alone(message: Message, descriptors: list[int]) -> None:
            for fd in descriptors:
                os.close(fd)
            hear(message)

        self.listen_with(channel, hear_alone, gone)

    def listen_with(
        self, channel: Channel, hear: Callable[[Message, list[int]], None], gone: Callable[[], None]
    ) -> None:
        """The same, for who wants the descriptors, and closes them."""
        self._selector.register(channel, selectors.EVENT_READ, _Listener(hear, gone))

    def forget(self, channel: Channel) -> None:
        """Closes a channel; does nothing the second time."""
        if channel.fileno() >= 0:
            self._selector.unregister(channel)
            channel.close()

    def serve(self, channel: Channel) -> None:
        """Hears what a channel has to say, now."""
        if channel.fileno() < 0:
            return
        listener: _Listener = self._selector.get_key(channel).data
        channel.flush()
        for message, fds in channel.receive():
            listener.hear(message, fds)
        if channel.closed and channel.fileno() >= 0:
            self.forget(channel)
            listener.gone()

    def turn(self, timeout_s: float) -> None:
        """Waits for at most so long, and serves what is ready."""
        self._note_unsent()
        for key, _ in self._selector.select(timeout_s):
            if isinstance(key.data, _Listener):
                assert isinstance(key.fileobj, Channel)
                self.serve(key.fileobj)
            else:
                key.data()

    def _note_unsent(self) -> None:
        """Waits for room, too, where something is unsent."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, Channel):
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if key.fileobj.unsent else 0)
                if key.events != wanted:
                    self._selector.modify(key.fileobj, wanted, key.data)
