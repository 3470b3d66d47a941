"""Arenas and maps with the real kernel: lifetimes, descriptors, forks, threads, death."""

from __future__ import annotations

import array
import faulthandler
import functools
import gc
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from headrace.errors import InternalError
from headrace.store import kernel, segments
from headrace.store.segments import ALIGNMENT, Arena, Atlas, Reading

PAGE = os.sysconf("SC_PAGESIZE")
MIB = 1 << 20


def descriptors() -> dict[str, str]:
    """What this process has open."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(1, 256 * MIB)
    yield arena
    arena.close()


@pytest.fixture
def atlas(arena: Arena) -> Iterator[Atlas]:
    atlas = Atlas()
    atlas.attach(1, os.dup(arena.fd))
    yield atlas
    atlas.close()


def nothing() -> None:
    pass


def in_child(work: Callable[[], None]) -> int:
    """Runs ``work`` in a forked child; gives its exit status: 0, or 1 if it raised, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("size", [1, 5000, 60_000, 70_000, 300_000, 5 * MIB])
def test_round_trip_fresh_and_recycled(arena: Arena, atlas: Atlas, size: int) -> None:
    for seed in range(3):  # written through the file, then populated and copied, then copied
        content = [random.Random(seed).randbytes(n) for n in (size, 3, size // 2)]
        put = arena.put([memoryview(c) for c in content])
        assert put[0] == 0
        assert put[1] % PAGE == 0
        views = atlas.map(1, *put, Reading(nothing))
        assert [bytes(v) for v in views] == content
        assert not any(v.readonly for v in views)
        arena.free(put[0])


def test_buffers_of_every_shape_are_taken(arena: Arena, atlas: Atlas) -> None:
    grid = np.arange(12.0).reshape(3, 4)
    buffers = [memoryview(grid), memoryview(b"abc"), memoryview(np.zeros((0, 4))), memoryview(array.array("i", [1, 2]))]
    offset, length, sizes = arena.put(buffers)
    assert sizes == (96, 3, 0, 8)
    views = atlas.map(1, offset, length, sizes, Reading(nothing))
    assert [bytes(v) for v in views] == [grid.tobytes(), b"abc", b"", array.array("i", [1, 2]).tobytes()]


def test_mapped_buffers_are_aligned(arena: Arena, atlas: Atlas) -> None:
    views = atlas.map(1, *arena.put([memoryview(bytes(n)) for n in (100_001, 77, 100_000)]), Reading(nothing))
    assert [np.frombuffer(v, np.uint8).ctypes.data % ALIGNMENT for v in views] == [0, 0, 0]


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_a_reader_changes_only_its_own_copy(arena: Arena, atlas: Atlas, size: int) -> None:
    put = arena.put([memoryview(b"x" * size)])
    (first,), (second,) = atlas.map(1, *put, Reading(nothing)), atlas.map(1, *put, Reading(nothing))
    first[:] = b"y" * size
    assert bytes(second) == b"x" * size
    assert os.pread(arena.fd, size, put[0]) == b"x" * size


def test_on_close_comes_once_when_the_last_array_is_gone(arena: Arena, atlas: Atlas) -> None:
    closed: deque[int] = deque()
    value = {"a": np.arange(50_000.0), "b": [np.ones((100, 200))]}
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    put = arena.put([b.raw() for b in buffers])
    views = atlas.map(1, *put, Reading(lambda: closed.append(1)))
    atlas.detach(1)
    loaded = pickle.loads(data, buffers=views)
    del views
    part = loaded["b"][0][10:20, ::3].T
    again = memoryview(part[1:])
    del loaded, part
    gc.collect()
    assert not closed
    assert atlas.stats()["readings"] == 1
    assert np.asarray(again).sum() == again.shape[0] * again.shape[1]
    del again
    assert list(closed) == [1]
    assert atlas.stats()["readings"] == 0
    gc.collect()
    assert list(closed) == [1]


def test_on_close_survives_the_atlas(arena: Arena) -> None:
    closed: list[int] = []
    atlas = Atlas()
    atlas.attach(1, os.dup(arena.fd))
    views = atlas.map(1, *arena.put([memoryview(bytes(MIB))]), Reading(lambda: closed.append(1)))
    atlas.close()
    del atlas
    gc.collect()
    assert not closed
    views.clear()
    assert closed == [1]


def test_on_close_out_of_a_reference_cycle(arena: Arena, atlas: Atlas) -> None:
    closed: list[int] = []
    cycle: list[object] = [atlas.map(1, *arena.put([memoryview(bytes(MIB))]), Reading(lambda: closed.append(1)))]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert closed == [1]


def test_a_small_range_is_copied_and_closed_at_once(arena: Arena, atlas: Atlas) -> None:
    closed: list[int] = []
    put = arena.put([memoryview(b"x" * 1000)])
    (view,) = atlas.map(1, *put, Reading(lambda: closed.append(1)))
    assert closed == [1]
    arena.free(put[0])
    arena.put([memoryview(b"y" * 1000)])
    assert bytes(view) == b"x" * 1000


def test_a_reading_that_failed_is_over(atlas: Atlas) -> None:
    closed: list[int] = []
    with pytest.raises(InternalError, match="place 9 is not attached"):
        atlas.map(9, 0, PAGE, (1,), Reading(lambda: closed.append(1)))
    assert closed == [1]
    with pytest.raises(InternalError, match="past its arena's end"):
        atlas.map(1, 256 * MIB, PAGE, (1,), Reading(lambda: closed.append(1)))
    assert closed == [1, 1]


def test_no_handler_of_a_signal_can_run_at_the_end_of_a_reading(arena: Arena, atlas: Atlas) -> None:
    closed: deque[str] = deque()
    views = atlas.map(1, *arena.put([memoryview(bytes(MIB))]), Reading(functools.partial(closed.append, "it")))
    called: list[str] = []
    sys.settrace(lambda frame, event, arg: called.append(frame.f_code.co_name))
    try:
        views.clear()
    finally:
        sys.settrace(None)
    assert list(closed) == ["it"]
    assert called == []


def test_thousands_of_maps_need_no_descriptors(arena: Arena, atlas: Atlas) -> None:
    put = arena.put([memoryview(bytes(100_000))])
    before = len(os.listdir("/proc/self/fd"))
    closed: list[int] = []
    maps = [atlas.map(1, *put, Reading(lambda: closed.append(1))) for _ in range(5000)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert atlas.stats() == {"places": 1, "readings": 5000}
    del maps
    assert len(closed) == 5000


def test_too_many_maps_are_copied_instead(arena: Arena, atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_MOST_MAPS", 3)
    put = arena.put([memoryview(b"x" * 100_000)])
    closed: list[int] = []
    maps = [atlas.map(1, *put, Reading(lambda: closed.append(1))) for _ in range(5)]
    assert atlas.stats()["readings"] == 3
    assert len(closed) == 2
    assert all(bytes(view) == b"x" * 100_000 for (view,) in maps)


def test_attaching_again_closes_the_old_descriptor(arena: Arena, atlas: Atlas) -> None:
    other = Arena(1, MIB)
    put = other.put([memoryview(b"other")])
    atlas.attach(1, os.dup(other.fd))
    (view,) = atlas.map(1, *put, Reading(nothing))
    assert bytes(view) == b"other"
    other.close()  # the fixture sees a descriptor that is left


def test_freeing_what_is_not_in_use_is_an_internal_error(arena: Arena) -> None:
    offset = arena.put([memoryview(b"x")])[0]
    arena.free(offset)
    with pytest.raises(InternalError):
        arena.free(offset)


def test_free_works_in_a_finalizer_that_interrupts_the_arena(arena: Arena) -> None:
    offset, length, _ = arena.put([memoryview(bytes(MIB))])
    with arena._lock:  # as if the garbage collector ran inside put() of this thread
        arena.free(offset)
    assert arena.stats()["free_bytes"] == length


def test_a_full_arena_raises_and_stays_usable() -> None:
    arena = Arena(1, MIB)
    with pytest.raises(MemoryError, match="place 1"):
        arena.put([memoryview(bytes(2 * MIB))])
    first = arena.put([memoryview(bytes(MIB))])[0]
    with pytest.raises(MemoryError):
        arena.put([memoryview(b"")])
    arena.free(first)
    assert arena.put([memoryview(bytes(MIB))])[0] == 0
    arena.close()


def test_a_failed_copy_gives_its_range_back(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(MemoryError):
            arena.put([memoryview(b"x")])
    assert arena.stats()["used_bytes"] == 0
    arena.put([memoryview(b"x")])


def test_trim_gives_memory_back_to_the_kernel(arena: Arena, atlas: Atlas) -> None:
    kept = arena.put([memoryview(b"k" * MIB)])
    offset = arena.put([memoryview(bytes(64 * MIB))])[0]
    arena.free(offset)
    assert arena.stats()["resident_bytes"] == 65 * MIB
    assert arena.trim(16 * MIB) == 48 * MIB
    assert arena.stats()["resident_bytes"] == 17 * MIB
    assert arena.trim() == 16 * MIB
    assert arena.stats()["resident_bytes"] == MIB
    assert bytes(atlas.map(1, *kept, Reading(nothing))[0]) == b"k" * MIB


def test_readers_keep_a_closed_arena(arena: Arena, atlas: Atlas) -> None:
    put = arena.put([memoryview(b"x" * MIB)])
    (view,) = atlas.map(1, *put, Reading(nothing))
    arena.close()
    arena.close()
    assert bytes(view) == b"x" * MIB
    assert bytes(atlas.map(1, *put, Reading(nothing))[0]) == b"x" * MIB
    arena.free(put[0])
    with pytest.raises(InternalError, match="closed"):
        arena.put([memoryview(b"x")])


def test_close_waits_for_a_running_put(monkeypatch: pytest.MonkeyPatch) -> None:
    write = kernel.write

    def close_and_write(fd: int, data: memoryview, offset: int) -> None:
        slow.close()
        write(fd, data, offset)

    monkeypatch.setattr(kernel, "write", close_and_write)
    slow = Arena(1, MIB)
    fd = os.dup(slow.fd)
    offset = slow.put([memoryview(b"x")])[0]
    assert slow.fd == -1
    assert os.pread(fd, 1, offset) == b"x"
    os.close(fd)


def test_an_arena_that_is_dropped_closes_itself() -> None:
    Arena(1, MIB).put([memoryview(b"x")])  # the fixture sees a descriptor that is left


@pytest.mark.parametrize("size", [0, 512 * MIB])
def test_nobody_can_resize_the_file_under_its_readers(arena: Arena, size: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, size)


def test_threads_share_an_arena(arena: Arena, atlas: Atlas) -> None:
    closed: deque[int] = deque()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            content = [rng.randbytes(1) * rng.choice([10, 5000, 300_000, MIB]) for _ in range(rng.randint(1, 3))]
            offset, length, sizes = arena.put([memoryview(c) for c in content])
            views = atlas.map(1, offset, length, sizes, Reading(lambda: closed.append(1)))
            assert [bytes(v) for v in views] == content
            del views
            if rng.random() < 0.1:
                arena.trim()
            arena.free(offset)

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(work, seed) for seed in range(6)]:
            future.result()
    assert len(closed) == 360
    assert arena.stats()["used_bytes"] == 0


def test_a_large_copy_lets_other_threads_run(arena: Arena) -> None:
    source = memoryview(bytes(64 * MIB))
    for _ in range(2):  # from then on its pages are mapped, and a put has nothing to do but to copy
        arena.free(arena.put([source])[0])
    gate = threading.Lock()
    gate.acquire()
    ran: list[bool] = []

    def wait_for_the_gate() -> None:
        with gate:
            ran.append(True)

    thread = threading.Thread(target=wait_for_the_gate)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # who has the GIL keeps it until it lets go by itself
    try:
        gate.release()
        for _ in range(300):  # a busy machine may wake the thread late
            arena.free(arena.put([source])[0])
            if ran:
                break
    finally:
        sys.setswitchinterval(interval)
    assert ran
    thread.join()


def test_a_forked_child_cannot_touch_its_parents_arena(arena: Arena, atlas: Atlas) -> None:
    put = arena.put([memoryview(b"x" * MIB)])
    address = arena._address

    def obey() -> None:
        with pytest.raises(InternalError, match="forked"):
            arena.put([memoryview(b"y" * MIB)])
        assert arena.fd == -1
        arena.close()
        own = Arena(1, MIB)
        own.put([memoryview(b"z" * 1000)])

    assert in_child(obey) == 0

    def trespass() -> None:
        faulthandler.disable()
        kernel.copy(address, memoryview(b"y" * MIB))

    assert in_child(trespass) == -signal.SIGSEGV
    assert os.pread(arena.fd, MIB, put[0]) == b"x" * MIB
    arena.put([memoryview(b"still usable")])


def test_a_forked_child_reports_nothing_and_keeps_no_descriptor(arena: Arena, atlas: Atlas) -> None:
    reader, writer = os.pipe()
    views = atlas.map(1, *arena.put([memoryview(b"x" * MIB)]), Reading(lambda: os.write(writer, b"closed")))
    memory = os.readlink(f"/proc/self/fd/{arena.fd}")

    def work() -> None:
        assert bytes(views[0]) == b"x" * MIB
        views.clear()
        gc.collect()
        assert memory not in descriptors().values()

    assert in_child(work) == 0
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 10)
    views.clear()
    assert os.read(reader, 10) == b"closed"
    os.close(reader)
    os.close(writer)


WRITER = """
import socket, sys, time
from headrace.store.segments import Arena
arena = Arena(1)
offset, length, sizes = arena.put([memoryview(b"x" * 1_000_000)])
channel = socket.socket(fileno=int(sys.argv[1]))
socket.send_fds(channel, [repr((offset, length, sizes)).encode()], [arena.fd])
time.sleep(60)
"""


def test_a_killed_writer_leaves_its_readers_the_value_and_nothing_else() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = subprocess.Popen([sys.executable, "-c", WRITER, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        message, fds, _, _ = socket.recv_fds(ours, 1000, 1)
        child.kill()
        child.wait()
    atlas = Atlas()
    atlas.attach(1, fds[0])
    offset, length, sizes = eval(message)
    (view,) = atlas.map(1, offset, length, sizes, Reading(nothing))
    assert bytes(view) == b"x" * 1_000_000
    atlas.close()


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_FSIZE"])
def test_limits_of_the_process_shrink_an_arena(limit: str) -> None:
    code = (
        "import resource; from headrace.store.segments import Arena;"
        f"resource.setrlimit(resource.{limit}, (1 << 30, 1 << 30));"
        "arena = Arena(1); assert 64 << 20 <= arena.capacity <= 1 << 30, arena.capacity;"
        "arena.put([memoryview(bytes(1 << 20))])"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_memory_is_the_owners_alone(arena: Arena) -> None:
    assert os.fstat(arena.fd).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(arena.fd)


def test_an_exit_with_live_maps_is_silent() -> None:
    code = (
        "import os, numpy; from headrace.store.segments import Arena, Atlas, Reading;"
        "arena = Arena(1); atlas = Atlas(); atlas.attach(1, os.dup(arena.fd));"
        "array = numpy.frombuffer(atlas.map(1, *arena.put([memoryview(bytes(1 << 20))]), Reading(print))[0]);"
        "keep = [array]"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
    assert done.stderr == b""
