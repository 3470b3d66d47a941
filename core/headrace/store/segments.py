"""Shared memory: a writer's :class:`Arena`, and the :class:`Atlas` through which readers see other processes' arenas.

::

    writer                                        reader
    Arena.put(buffers) ── copy ──► memfd ◄── private map ── Atlas.map(place, offset, length, sizes)
       ▲                            │  descriptor travels once (SCM_RIGHTS)        │
    Arena.free(offset) ◄── ledger ◄─┴───── Reading.on_close ◄── last view is gone ─┘

Memory is an anonymous memfd, so nothing has a name and nothing outlives its processes. Only its own process writes to
an arena, through one shared map that it keeps: copying into pages which are mapped already is ten times as fast as
into fresh ones, so pages that were used before are used again first.

Invariants: no two objects in use share a page; a range becomes free only through :meth:`Arena.free`; readers' writes
stay in their own copies of the pages.
"""

from __future__ import annotations

import errno
import operator
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from headrace.errors import InternalError
from headrace.store import kernel
from headrace.store.kernel import PAGE
from headrace.store.ranges import RangeSet

ALIGNMENT: Final = 64
"""Every buffer starts at a multiple of this: a cache line, and what Arrow asks for."""

_COPY_UP_TO: Final = 64 * 1024
"""A range up to this size is read, not mapped: two system calls and the faults cost more than the copy (measured)."""

_GIL_FREE_FROM: Final = 256 * 1024
"""From this size a copy lets go of the GIL; below, the few µs that this costs are not worth it."""

_MOST_MAPS: Final = 16 * 1024
"""With this many maps alive ranges are copied: the kernel allows a process 65,530 (vm.max_map_count) for everything."""

_arenas: weakref.WeakSet[Arena] = weakref.WeakSet()
_atlases: weakref.WeakSet[Atlas] = weakref.WeakSet()
_live: set[_Keeper] = set()
"""One for every reading of this process. It outlives its atlas, as maps do."""


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where buffers of these sizes stand in one range, and the range's length: whole pages, at least one."""
    offsets = []
    end = 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, max(PAGE, -(-end // PAGE) * PAGE)


class Arena:
    """Memory of this process that others can read. All methods are thread-safe.

    Args:
        place: number of this process as a place, for messages.
        capacity: the most bytes it can hold; by default twice the machine's memory. It costs address space only.

    Raises:
        OSError: no descriptor or no address space is left.
    """

    def __init__(self, place: int, capacity: int | None = None) -> None:
        self.place = place
        self.fd, self._memory, self.capacity = kernel.create_shared(capacity or 2 * _physical_memory())
        """``fd`` stays the arena's: duplicate it before giving it to an :class:`Atlas` of this process."""
        self._address = kernel.address_of(self._memory)
        self._view = memoryview(self._memory)
        kernel.leave_out_of_core_dumps(self._address, self.capacity)
        self._lock = threading.Lock()
        self._closed = False
        self._used: dict[int, int] = {}
        # Frees can come from a finalizer, which may run inside any method of this very thread: they only append.
        self._returned: deque[tuple[int, int]] = deque()
        self._free = RangeSet()
        self._warm = RangeSet()  # those free pages that the kernel has backed with memory already
        self._unmapped = RangeSet()  # pages, free or not, last made by a write to the file: not in our map yet
        self._free.add(0, self.capacity)
        self._high_water = 0
        self._puts = 0
        _arenas.add(self)

    def put(self, buffers: Sequence[memoryview]) -> tuple[int, int, tuple[int, ...]]:
        """Copies buffers into one range. Large copies let go of the GIL.

        Args:
            buffers: any C-contiguous buffers; they are not kept.

        Returns:
            The range's offset and length (whole pages), and the size of each buffer: what :meth:`Atlas.map` asks for.

        Raises:
            MemoryError: the arena is full, or the kernel has no memory left.
        """
        flat = [_flat(b) for b in buffers]
        sizes = tuple([b.nbytes for b in flat])
        offsets, length = layout(sizes)
        start, warm, unmapped = self._allocate(length)
        try:
            # What _allocate says about the pages stays true: nobody else touches this range, and close() waits for us.
            for first, last in unmapped:
                kernel.populate(self._address + first, last - first)
            for offset, buffer in zip(offsets, flat, strict=True):
                if warm:
                    self._copy(start + offset, buffer)
                else:
                    kernel.write(self.fd, buffer, start + offset)
        except BaseException as error:  # Ctrl-C included: nobody else would ever free the range
            self.free(start)
            if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.ENOSPC):
                raise MemoryError(f"no memory for {length} bytes in the arena of place {self.place}") from error
            raise
        finally:
            self._end_put()
        return start, length, sizes

    def free(self, offset: int) -> None:
        """Lets a range be used again. Safe in finalizers: it never blocks and takes no lock that it would wait for.

        Raises:
            InternalError: no range in use starts at this offset.
        """
        length = self._used.pop(offset, None)
        if length is None:
            raise InternalError(f"place {self.place}: nothing in use at offset {offset}")
        self._returned.append((offset, length))
        if self._lock.acquire(blocking=False):
            try:
                self._take_back()
            finally:
                self._lock.release()

    def trim(self, keep_bytes: int = 0) -> int:
        """Gives free memory back to the kernel until at most ``keep_bytes`` of it are kept; returns the bytes given.

        The highest pages go first: first fit then works in the low ones, which stay.
        """
        given = 0
        with self._lock:
            self._require_open()
            self._take_back()
            for start, end in reversed(list(self._warm)):
                start = max(start, end - (self._warm.size - keep_bytes) // PAGE * PAGE)
                if self._warm.size <= keep_bytes or start >= end:
                    break
                kernel.punch(self._address + start, end - start)
                self._warm.cut(start, end)
                given += end - start
        return given

    def stats(self) -> dict[str, int]:
        """Bytes: in use, free but still backed by memory, backed by memory at all, highest end; and objects in use."""
        with self._lock:
            self._take_back()
            return {
                "objects": len(self._used),
                "used_bytes": self.capacity - self._free.size,
                "free_bytes": self._warm.size,
                "high_water_bytes": self._high_water,
                "resident_bytes": 0 if self.fd < 0 else os.fstat(self.fd).st_blocks * 512,
            }

    def close(self) -> None:
        """Lets go of the memory, once puts that run have ended; readers keep what they have mapped. May be repeated."""
        with self._lock:
            self._closed = True
            self._let_go_if_idle()

    def __del__(self) -> None:
        if hasattr(self, "_puts"):
            self.close()

    def _let_go_if_idle(self) -> None:
        if self._closed and not self._puts and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._view.release()
            self._memory.close()

    def _require_open(self) -> None:
        if self._closed:
            raise InternalError(f"the arena of place {self.place} is closed, or was inherited by a forked child")

    def _allocate(self, length: int) -> tuple[int, bool, list[tuple[int, int]]]:
        """Finds a range; says whether all of it is backed by memory, and which parts of that are not mapped yet."""
        with self._lock:
            self._require_open()
            self._take_back()
            start = self._warm.first_fit(length)
            warm = start is not None
            if start is None:
                start = self._free.first_fit(length)
            if start is None:
                raise MemoryError(f"the arena of place {self.place} has no {length} bytes in a row left")
            end = start + length
            self._free.cut(start, end)
            self._warm.cut(start, end)
            unmapped = self._unmapped.cut(start, end) if warm else []
            if not warm:
                self._unmapped.add(start, end)
            self._used[start] = length
            self._high_water = max(self._high_water, end)
            self._puts += 1
        return start, warm, unmapped

    def _end_put(self) -> None:
        with self._lock:
            self._puts -= 1
            self._let_go_if_idle()

    def _take_back(self) -> None:
        while self._returned:
            start, length = self._returned.popleft()
            self._free.add(start, start + length)
            self._warm.add(start, start + length)

    def _copy(self, start: int, buffer: memoryview) -> None:
        if buffer.nbytes < _GIL_FREE_FROM:
            self._view[start : start + buffer.nbytes] = buffer
        else:
            kernel.copy(self._address + start, buffer)

    def forget_after_fork(self) -> None:
        """In a forked child: makes sure that it neither writes to its parent's memory nor keeps it alive."""
        self._lock = threading.Lock()
        if self.fd >= 0:
            kernel.forbid(self._address, self.capacity)
            os.close(self.fd)
            self.fd = -1
        self._closed = True


class Reading:
    """Stands for one reading of a range, which is over when nobody holds this any more, whatever was raised.

    Args:
        on_close: called exactly once, when the reading is over, in any thread at any moment (by the garbage collector):
            it must not wait for a lock. Never called in a forked child, nor for what is alive when the process ends.
            It should be C all the way, like ``partial(deque.append, x)``: the handler of a signal can run in any
            Python, and what it raises there is lost.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, on_close: Callable[[], object]) -> None:
        closer = _Closer(self, _close)
        closer.on_close = on_close
        keeper = _Keeper(self, _live.discard)
        keeper.closer = closer
        _live.add(keeper)


class Atlas:
    """Reads ranges of other processes' arenas. All methods are thread-safe."""

    def __init__(self) -> None:
        self._fds: dict[int, int] = {}
        # Guards descriptors, not maps: a descriptor that is closed while another thread maps it may be somebody else's.
        self._lock = threading.RLock()
        _atlases.add(self)

    def attach(self, place: int, fd: int) -> None:
        """Makes a place's arena known. The descriptor belongs to the atlas from now on."""
        with self._lock:
            self.detach(place)
            self._fds[place] = fd

    def detach(self, place: int) -> None:
        """Forgets a place; maps of its arena live on. Unknown places are ignored."""
        with self._lock:
            fd = self._fds.pop(place, None)
            if fd is not None:
                os.close(fd)

    def map(self, place: int, offset: int, length: int, sizes: Sequence[int], reading: Reading) -> list[memoryview]:
        """Gives private, writable memory with the contents of a range; large ranges are mapped, small ones copied.

        Args:
            place: whose arena; it must be attached.
            offset: as :meth:`Arena.put` returned it, like ``length`` and ``sizes``.
            length: bytes.
            sizes: of the buffers in the range.
            reading: held until the last view, or array made of one, is gone; not held if the range was copied, or if
                this method raises.

        Returns:
            One view a buffer. A forked child may read its inherited ones only while this process keeps them too.

        Raises:
            InternalError: the place is not attached.
            OSError: no address space is left.
        """
        offsets, _ = layout(sizes)
        with self._lock:
            fd = self._fds.get(place)
            if fd is None:
                raise InternalError(f"the arena of place {place} is not attached")
            copied = length <= _COPY_UP_TO or len(_live) > _MOST_MAPS
            memory = _read(fd, offset, length) if copied else kernel.map_file(fd, offset, length, shared=False)
        if isinstance(memory, kernel.Map):
            memory.reading = reading
        whole = memoryview(memory)
        return [whole[start : start + size] for start, size in zip(offsets, sizes, strict=True)]

    def stats(self) -> dict[str, int]:
        """How many places are attached, and how many ranges are being read in this process."""
        return {"places": len(self._fds), "readings": len(_live)}

    def close(self) -> None:
        """Forgets every place; maps live on."""
        with self._lock:
            for place in list(self._fds):
                self.detach(place)

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()

    def forget_after_fork(self) -> None:
        """In a forked child: no descriptor is kept."""
        self._lock = threading.RLock()
        self.close()


# At the end of a reading no Python runs, for the reason that Reading gives. So it takes two references, each of which
# calls one thing in C.


class _Closer(weakref.ref[Reading]):
    """Calls ``on_close`` when a reading is over."""

    __slots__ = ("on_close",)

    on_close: Callable[[], object]


class _Keeper(weakref.ref[Reading]):
    """Keeps the closer of a reading alive, and is kept so itself by ``_live`` until the reading is over."""

    __slots__ = ("closer",)

    closer: _Closer


_close: Final[Callable[[Any], object]] = operator.methodcaller("on_close")


def _flat(buffer: Any) -> memoryview:
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _read(fd: int, offset: int, length: int) -> bytearray:
    memory = bytearray(length)
    if os.preadv(fd, [memory], offset) != length:
        raise InternalError(f"a range of {length} bytes at {offset} reaches past its arena's end")
    return memory


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * PAGE


def _forget_after_fork() -> None:
    _live.clear()
    for arena in list(_arenas):
        arena.forget_after_fork()
    for atlas in list(_atlases):
        atlas.forget_after_fork()


os.register_at_fork(after_in_child=_forget_after_fork)
