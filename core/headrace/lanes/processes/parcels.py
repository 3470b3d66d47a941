"""Parcels: pickled values as they travel between processes, in one of three forms::

    data                                    bytes: a pickle with nothing out of band
    (data, buffers)                         a pickle and its buffers, all in the message ("whole", like the first form)
    (data, place, offset, length, sizes)    a pickle whose buffers lie in shared memory ("shared"); with None for the
                                            pickle, that is the first of the buffers

Every sending of a shared parcel is answered once, when the receiver does not read its segment any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from headrace.store.pickling import Packed, unpack
from headrace.store.segments import Arena, Atlas, Reading

Parcel: TypeAlias = Any


class Unopened:
    """A value as it came, not unpickled yet: what goes wrong in that is the failure of the task that asks for it."""

    __slots__ = ("parcel",)

    def __init__(self, parcel: Parcel) -> None:
        self.parcel = parcel


def is_shared(parcel: Parcel) -> bool:
    """Whether its buffers lie in shared memory."""
    return type(parcel) is tuple and len(parcel) == 5


def segment_of(parcel: Parcel) -> tuple[int, int]:
    """Where the memory of a shared parcel is: place and offset, by which a segment is known everywhere."""
    _, place, offset, _, _ = parcel
    return place, offset


def whole(packed: Packed) -> Parcel:
    """A parcel that holds everything itself."""
    return (packed.data, [bytes(buffer) for buffer in packed.buffers]) if packed.buffers else packed.data


def wrap(packed: Packed, small_bytes: int, place: int, arena: Callable[[], Arena]) -> Parcel:
    """A parcel for any reader: whole up to ``small_bytes``, else with its buffers in the arena of this place."""
    if packed.size_bytes <= small_bytes:
        return whole(packed)
    data, buffers = packed
    if len(data) > small_bytes:
        return (None, place, *arena().put([memoryview(data), *buffers]))
    return (data, place, *arena().put(buffers))


def open_whole(parcel: Parcel) -> Any:
    """Unpickles a parcel that is not shared."""
    if type(parcel) is bytes:
        return unpack(parcel)
    data, buffers = parcel
    return unpack(data, [bytearray(buffer) for buffer in buffers])


def views_of(parcel: Parcel, atlas: Atlas, reading: Reading) -> list[memoryview]:
    """What a shared parcel has in shared memory, to be unpickled; see :meth:`Atlas.map`."""
    _, place, offset, length, sizes = parcel
    return atlas.map(place, offset, length, sizes, reading)


def open_shared(parcel: Parcel, views: list[memoryview]) -> Any:
    """Unpickles a shared parcel out of its :func:`views_of`."""
    data = parcel[0]
    if data is None:
        data = views.pop(0)
    return unpack(data, views)
