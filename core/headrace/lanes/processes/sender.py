"""Turns orders into frames: what the owner has to say to a worker, pickled and sent in the order in which it was said.

A task goes with everything it needs that the worker does not have: the function (once), the values of its
dependencies (small ones in the message, large ones through shared memory), its arguments.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

from headrace.errors import UnpicklableError
from headrace.lanes.processes import surroundings, wire
from headrace.lanes.processes.failures import explain_unpicklable, must_stay
from headrace.lanes.processes.functions import Functions
from headrace.lanes.processes.host import Host
from headrace.lanes.processes.parcels import Parcel, is_shared, segment_of, whole
from headrace.lanes.processes.peer import HELD, SENT, Order, Peer
from headrace.lanes.processes.publications import Publications
from headrace.lanes.processes.reloads import Reloads
from headrace.lanes.processes.wire import Op, Record
from headrace.sched.events import HERE, Event, TaskRaised, TasksRevoked, TaskUnpicklable, ValuePublished
from headrace.store.hashes import HashDiffersError
from headrace.store.pickling import Packed, pack

_FRAME_TASKS: Final = 256


class _Frame:
    """Ops of one message, in the making. Functions and values may overtake tasks, nothing else may."""

    __slots__ = ("descriptors", "ops", "records", "tasks")

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.descriptors: list[int] = []
        self.records: list[Record] = []
        self.tasks = 0

    def order(self, *op: Any) -> None:
        if self.records:
            self.ops.append((wire.RUN, self.records))
            self.records = []
        self.ops.append(op)


class Sender:
    """Sends to all workers; one thread at a time sends to a given one."""

    def __init__(self, host: Host, publications: Publications, small_bytes: int) -> None:
        self._host = host
        self._publications = publications
        self._small_bytes = small_bytes
        self._functions = Functions(host.call_foreign)
        self._reloads = Reloads()

    def drain(self, peer: Peer) -> tuple[list[Event], bool]:
        """Sends what is in a worker's outbox. If another thread is at it, that thread sends also what is new.

        Returns:
            Events to post, and whether the socket has taken everything.
        """
        events: list[Event] = []
        emptied = True
        try:
            # Looks again after it has let go: what came while it sent was left to it.
            while peer.outbox and peer.link is not None and peer.sending.acquire(blocking=False):
                try:
                    while peer.outbox and peer.link is not None:
                        emptied = self._send_frame(peer, events)
                finally:
                    peer.sending.release()
        except BaseException:
            # Whatever went wrong: nobody knows what the worker was told, so it goes, and whoever needs it hears that it
            # died, as expected.
            peer.stopping = True
            peer.kill()
            raise
        return events, emptied

    def _send_frame(self, peer: Peer, events: list[Event]) -> bool:
        frame = _Frame()
        self._follow(peer, frame)
        while peer.outbox and frame.tasks < _FRAME_TASKS:
            self._encode(peer, frame, peer.outbox.popleft(), events)
        if frame.records:
            frame.ops.append((wire.RUN, frame.records))
        link = peer.link
        return link is None or not frame.ops or link.channel.send(frame.ops, frame.descriptors)

    def _follow(self, peer: Peer, frame: _Frame) -> None:
        """The worker looks for files and modules where the owner does, and has the same environment and modules."""
        self._reloads.look()
        directory = surroundings.directory()
        if peer.told != (sys.path, directory):
            path = [p for p in sys.path if type(p) is str]
            if peer.told is None:
                peer.reloads = len(self._reloads.names)
                frame.order(wire.SETUP, path, directory, self._small_bytes)
            else:
                frame.order(wire.PLACE, path, directory)
            peer.told = list(sys.path), directory
        variables = surroundings.changed_variables(peer.environment)
        if variables:
            frame.order(wire.ENVIRON, variables)
        reloaded = self._reloads.names[peer.reloads :]
        if reloaded:
            peer.reloads += len(reloaded)
            self._functions.forget()
            frame.order(wire.RELOAD, reloaded)
        oldest = self._functions.oldest
        forgotten = [number for number in peer.functions if number < oldest] if peer.oldest_function < oldest else ()
        if forgotten:
            peer.functions.difference_update(forgotten)
            frame.order(wire.FORGET, forgotten)
        peer.oldest_function = oldest

    def _encode(self, peer: Peer, frame: _Frame, order: Order, events: list[Event]) -> None:
        code = order[0]
        if code == wire.RUN:
            self._encode_tasks(peer, frame, order[1], events)
        elif code == wire.DROP:
            dropped = [task for task in order[1] if peer.at.pop(task, None) is not None]
            # A publication that was on its way when the value was released would stay for ever.
            self._publications.release_made_by(peer.number, dropped)
            if dropped:
                frame.order(wire.DROP, dropped)
        elif code == wire.PUBLISH and self._publications.is_published(order[1]):
            events.append(ValuePublished(order[1], peer.number))
        elif code == wire.DETACH:
            if order[1] in peer.arenas:
                peer.arenas.remove(order[1])
                frame.order(*order)
        else:
            frame.order(*order)

    def _encode_tasks(self, peer: Peer, frame: _Frame, tasks: Sequence[int], events: list[Event]) -> None:
        self._share_states(peer, frame, tasks[0])  # all are of one job
        records, at = frame.records, peer.at
        for task in tasks:
            try:
                records.append(self._encode_task(peer, frame, task))
                at[task] = SENT
            except KeyError:
                # Its job is gone, or a value that it needs is: it cannot run there now.
                events.append(TasksRevoked(peer.number, [task]))
            except UnpicklableError as error:
                stays = must_stay(error)
                # In no local variable: the frames of the cause's traceback lead back to this one.
                self._host.fail(task, explain_unpicklable(str(error), self._host.key_of(task), error.__cause__, stays))
                events.append(TaskUnpicklable(task, peer.number, stays))
            except (OSError, MemoryError) as error:  # no shared memory for it: here it needs none
                self._host.fail(task, error)
                events.append(TaskUnpicklable(task, peer.number))
            except BaseException as error:  # pickling runs users' code: what that raises is the failure of its task
                if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                    raise
                self._host.fail(task, error)
                events.append(TaskRaised(task, HERE))
        frame.tasks += len(tasks)

    def _share_states(self, peer: Peer, frame: _Frame, task: int) -> None:
        states = self._host.states_of(task)
        if states is not peer.states:
            changed = {name: state for name, state in states.items() if peer.states.get(name) != state}
            peer.states = states
            if changed:
                peer.variant = self._functions.variant(states)
                frame.order(wire.FOLLOW, changed)

    def _encode_task(self, peer: Peer, frame: _Frame, task: int) -> Record:
        call, base = self._host.call_of(task)
        wanted = self._host.wanted(task)
        fn, args, kwargs, holes = call
        number, packed = self._functions.number(base, fn, peer.variant)
        if number not in peer.functions:
            function = self._publications.lend(packed, peer.number)
            self._attach(peer, frame, function)
            frame.ops.append((wire.FUNCTION, number, function))
            peer.functions.add(number)
        if holes:
            for dep in self._host.deps_of(task):
                if dep not in peer.at:
                    self._encode_value(peer, frame, dep)
        parcel: Parcel | None = None
        plain: tuple[Any, ...] | None = args
        if kwargs or not wire.is_plain(args):
            plain, parcel = self._encode_arguments(peer, frame, args, kwargs, holes)
        return task, base, number, plain, parcel, holes, wanted

    def _encode_arguments(
        self, peer: Peer, frame: _Frame, args: tuple[Any, ...], kwargs: dict[str, Any] | None, holes: Sequence[Any]
    ) -> tuple[tuple[Any, ...] | None, Parcel | None]:
        if holes:
            # What stands at a hole is replaced anyway, and may be anything.
            blank = list(args)
            for position, _ in holes:
                blank[position] = None
            args = tuple(blank)
        if not kwargs and wire.is_plain(args):
            return args, None
        parcel = self._publications.lend(self._host.call_foreign(_pack_arguments, args, kwargs), peer.number)
        self._attach(peer, frame, parcel)
        return None, parcel

    def _encode_value(self, peer: Peer, frame: _Frame, task: int) -> None:
        parcel = self._publications.send(task, peer.number)
        if parcel is None:
            value = self._host.value_of(task)
            if wire.is_plain((value,)):
                frame.ops.append((wire.VALUE, task, True, value))
                peer.at[task] = HELD
                return
            packed = self._host.call_foreign(pack, value, f"value of {self._host.key_of(task)}", True)
            if packed.size_bytes <= self._small_bytes:
                parcel = whole(packed)
            else:
                self._publications.publish_here(task, packed)
                parcel = self._publications.send(task, peer.number)
                if parcel is None:
                    raise KeyError(task)  # released at this very moment
        self._attach(peer, frame, parcel)
        frame.ops.append((wire.VALUE, task, False, parcel))
        peer.at[task] = HELD

    def _attach(self, peer: Peer, frame: _Frame, parcel: Parcel) -> None:
        """The first time that a worker is sent to somebody's arena it gets the descriptor."""
        if not is_shared(parcel):
            return
        place, _ = segment_of(parcel)
        if place != peer.number and place not in peer.arenas:
            # Before everything else in the frame: a value that lies there may stand before.
            frame.ops.insert(0, (wire.ATTACH, place))
            frame.descriptors.insert(0, self._publications.arena_fd(place))
            peer.arenas.add(place)


def _pack_arguments(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Packed:
    try:
        return pack((args, kwargs), called=True)
    except HashDiffersError:
        raise
    except UnpicklableError:
        # Once more, for an error whose path begins with what the user has written.
        pack(args, "args")
        pack(kwargs, "kwargs")
        raise
