"""Images, durable copies and segments: real files, real memory, other real processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.store import kernel
from headrace.testing import wait_until
from headrace_airflow.store import image, segments, storage
from headrace_airflow.store.ledger import Slot

SLOT = Slot("dag", "manual__2026-01-01T00:00:00+00:00", "group.task", 3, "return_value")
INFO = {"slot": list(SLOT), "type": "t", "shape": "s"}


def image_of(*parts: bytes) -> bytes:
    sizes = [len(part) for part in parts]
    offsets, length = image.plan(sizes)
    memory = bytearray(length)
    memory[: image.table_bytes(len(sizes))] = image.table(sizes)
    for offset, part in zip(offsets, parts, strict=True):
        memory[offset : offset + len(part)] = part
    return bytes(memory)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.integers(0, 100))
def test_parts_come_back_from_an_image(parts: list[bytes], more: int) -> None:
    found = image.split(memoryview(image_of(*parts) + bytes(more)))
    assert [bytes(part) for part in found] == parts


@given(st.binary(max_size=200))
def test_other_bytes_are_no_image(data: bytes) -> None:
    with pytest.raises(image.BadImageError):
        image.split(memoryview(data))


def test_an_image_that_was_cut_off_is_none() -> None:
    whole = image_of(b"x" * 100, b"y" * 100)
    with pytest.raises(image.BadImageError):
        image.split(memoryview(whole)[:-1])


@pytest.fixture(params=["", "file://", "local://"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Plain paths, and a file system of fsspec's."""
    return f"{request.param}{tmp_path}/root"


def copy(root: str, id: str = "i" * 32, slot: Slot = SLOT, data: bytes = b"data") -> str:
    url = storage.url_of(root, slot, id)
    whole = image_of(data)
    storage.write(url, {}, whole, len(whole), {**INFO, "id": id})
    return url


def bring_back(url: str, id: str = "i" * 32) -> list[bytes]:
    target = segments.create(1 << 16) if storage.local_path(url) is None else None
    fd = None
    try:
        fd = storage.read(url, {}, id, target)
        where = target if fd is None else fd
        assert where is not None
        return [bytes(part) for part in image.split(memoryview(os.pread(where, os.fstat(where).st_size, 0)))]
    finally:
        for open_fd in {fd, target} - {None}:
            os.close(open_fd)


def files(root: str) -> list[Path]:
    return sorted(path for path in Path(root.split("://")[-1]).rglob("*") if path.is_file())


def test_a_copy_comes_back(root: str) -> None:
    assert bring_back(copy(root)) == [b"data"]
    assert [path.name for path in files(root)] == [f"return_value-{'i' * 32}.headrace"]


def test_a_copy_is_made_from_memory(root: str) -> None:
    whole = image_of(b"pickle", os.urandom(20 << 20))
    fd = segments.create(len(whole))
    os.pwrite(fd, whole, 0)
    url = storage.url_of(root, SLOT, "i" * 32)
    storage.write(url, {}, fd, len(whole), {**INFO, "id": "i" * 32})
    os.close(fd)
    assert files(root)[0].read_bytes()[: len(whole)] == whole


def is_cached(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(fd, [bytearray(4096)], 1 << 20, os.RWF_NOWAIT) > 0
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def is_on_a_disk(folder: Path) -> bool:
    with open(folder / "probe", "wb+") as file:
        file.write(bytes(4 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return not is_cached(folder / "probe")


@pytest.mark.parametrize("size", [(20 << 20) + 5, 32 << 20], ids=["odd", "even"])
def test_a_large_copy_is_not_kept_in_memory_a_second_time(tmp_path: Path, size: int) -> None:
    if not is_on_a_disk(tmp_path):
        pytest.skip("the files of tests stand in memory")
    whole = image_of(b"pickle", os.urandom(size))
    url = storage.url_of(str(tmp_path / "root"), SLOT, "i" * 32)
    fd = segments.create(len(whole))
    os.pwrite(fd, whole, 0)
    storage.write(url, {}, fd, len(whole), {**INFO, "id": "i" * 32})
    os.close(fd)
    assert not is_cached(Path(url))
    assert bring_back(url) == [b"pickle", whole[-size:]]


@pytest.mark.parametrize("damage", ["cut", "flip", "footer", "other", "empty"])
def test_a_damaged_copy_is_noticed(root: str, damage: str) -> None:
    url = copy(root)
    path = files(root)[0]
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[65] ^= 1
    if damage == "footer":
        content[-image.TAIL_BYTES - 1] = ord("x")  # it was the last brace
    path.write_bytes({"cut": content[:-1], "empty": b""}.get(damage, content))
    with pytest.raises(image.BadImageError):
        bring_back(url, "j" * 32 if damage == "other" else "i" * 32)


def test_a_missing_copy_is_said_to_be_missing(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        bring_back(storage.url_of(root, SLOT, "i" * 32))


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    url = storage.url_of(str(tmp_path / "root"), SLOT, "i" * 32)
    empty = segments.create(4096)
    with pytest.raises(image.BadImageError):
        storage.write(url, {}, empty, 1 << 20, {**INFO, "id": "i" * 32})  # the memory is shorter than it should be
    os.close(empty)
    assert files(str(tmp_path / "root")) == []


def test_erasing_leaves_no_empty_folders_and_may_be_repeated(root: str) -> None:
    url, other = copy(root), copy(root, "j" * 32, SLOT._replace(task_id="other"))
    storage.erase(url, {})
    storage.erase(url, {})
    assert [path.name for path in files(root)] == [f"return_value-{'j' * 32}.headrace"]
    storage.erase(other, {})
    assert files(root) == []
    if storage.local_path(root) is not None:
        assert list(Path(root.split("://")[-1]).iterdir()) == []


def test_sweeping_takes_runs_as_wholes(root: str) -> None:
    old = copy(root, "a" * 32)
    copy(root, "b" * 32, SLOT._replace(run_id="young"))
    copy(root, "c" * 32, SLOT._replace(run_id="mixed"))
    copy(root, "d" * 32, SLOT._replace(run_id="mixed", task_id="late"))
    for path in files(root):
        if path.name.endswith((f"{'a' * 32}.headrace", f"{'c' * 32}.headrace")):
            os.utime(path, (1, 1))
    kept = storage.run_folder(SLOT.dag_id, SLOT.run_id)
    assert storage.sweep(root, {}, 3600.0, [kept]) == 0
    assert storage.sweep(root, {}, 3600.0) == 1
    with pytest.raises(FileNotFoundError):
        bring_back(old, "a" * 32)
    assert len(files(root)) == 3


@given(st.tuples(*[st.text(min_size=1, max_size=250)] * 3, st.text(min_size=1, max_size=512)))
def test_any_name_makes_a_path_that_stays_inside(names: tuple[str, str, str, str]) -> None:
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return
    dag_id, run_id, task_id, key = names
    parts = storage.url_of("/root", Slot(dag_id, run_id, task_id, -1, key), "i" * 32).split("/")
    assert len(parts) == 7
    assert parts[:2] == ["", "root"]
    assert all(0 < len(part.encode()) <= 200 and part not in (".", "..") and "\0" not in part for part in parts[2:])


# Memory


@pytest.fixture
def segment() -> Iterator[int]:
    fd = segments.create(1 << 20)
    yield fd
    os.close(fd)


def test_the_kernel_says_who_else_has_a_segment(segment: int) -> None:
    assert segments.is_alone(segment)
    writer = segments.reopen(segment, os.O_RDWR)
    assert not segments.is_alone(segment)
    memory = kernel.map_file(writer, 0, 4096, shared=True)
    os.close(writer)
    assert not segments.is_alone(segment), "it is mapped for writing"
    memory.close()
    assert segments.is_alone(segment)
    reader = segments.reopen(segment, os.O_RDONLY)
    memory = kernel.map_file(reader, 0, 4096, shared=False)
    os.close(reader)
    assert not segments.is_alone(segment), "it is mapped for reading"
    memory.close()
    assert segments.is_alone(segment)


def test_a_forked_child_that_still_maps_a_segment_is_seen(segment: int) -> None:
    reader = segments.reopen(segment, os.O_RDONLY)
    memory = kernel.map_file(reader, 0, 4096, shared=False)
    os.close(reader)
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(theirs)
        os.closerange(ours + 1, 4096)  # like a daemon of the task's: nothing is open, but the memory is mapped
        os.read(ours, 1)
        os._exit(0)
    os.close(ours)
    memory.close()
    assert not segments.is_alone(segment)
    os.close(theirs)
    os.waitpid(child, 0)
    assert segments.is_alone(segment)


def test_readers_cannot_write_to_a_segment_nor_anybody_resize_it(segment: int) -> None:
    reader = segments.reopen(segment, os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file"):
        os.pwrite(reader, b"x", 0)
    os.close(reader)
    with pytest.raises(PermissionError):
        os.ftruncate(segment, 0)
    assert fcntl.fcntl(segment, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK


@pytest.mark.parametrize("used_before", [False, True])
def test_an_image_is_written_whole(segment: int, used_before: bool) -> None:
    parts = [b"pickle", memoryview(os.urandom(300_000)), memoryview(b""), memoryview(os.urandom(5000))]
    segments.fill(segment, parts, used_before=used_before)
    found = image.split(memoryview(os.pread(segment, 1 << 20, 0)))
    assert [bytes(part) for part in found] == [bytes(part) for part in parts]


def test_a_segment_comes_back_from_the_pool_only_when_nobody_maps_it() -> None:
    pool = segments.Pool(8 << 20)
    first, second = segments.create(2 << 20), segments.create(2 << 20)
    inode = os.fstat(first).st_ino
    reader = segments.reopen(second, os.O_RDONLY)
    pool.give(first)
    pool.give(second)
    assert pool.size_bytes == 2 << 20
    assert pool.take(1 << 20) is None, "half of it would be wasted"
    again = pool.take((2 << 20) - 100)
    assert again is not None
    assert os.fstat(again).st_ino == inode
    assert pool.take(2 << 20) is None
    pool.give(again)
    pool.close()
    assert pool.size_bytes == 0
    os.close(reader)


@pytest.mark.parametrize("size", [4096, 64 << 20], ids=["here", "elsewhere"])
def test_what_is_let_go_of_is_closed(size: int) -> None:
    fd = segments.create(size)
    os.pwrite(fd, b"x" * size, 0)
    inode = os.fstat(fd).st_ino
    segments.let_go(fd)
    wait_until(lambda: inode not in inodes_open(), "the segment's end")


def inodes_open() -> set[int]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.stat(f"/proc/self/fd/{fd}").st_ino)
    return found


def test_the_pool_keeps_no_more_than_it_may() -> None:
    pool = segments.Pool(4 << 20)
    for _ in range(4):
        pool.give(segments.create(2 << 20))
    assert pool.size_bytes == 4 << 20
    pool.trim(2 << 20)
    assert pool.size_bytes == 2 << 20
    pool.give(segments.create(8 << 20))
    assert pool.size_bytes == 2 << 20, "too large a segment is not kept"
    pool.close()


def test_a_spilled_value_has_no_name(tmp_path: Path) -> None:
    fd = segments.spill_file(str(tmp_path / "spill"), 1 << 20)
    assert os.fstat(fd).st_size == 1 << 20
    assert list((tmp_path / "spill").iterdir()) == []
    os.close(fd)


def test_reading_a_copy_keeps_its_run(tmp_path: Path) -> None:
    url = copy(str(tmp_path))
    os.utime(url, (1, 1))
    bring_back(url)
    assert storage.sweep(str(tmp_path), {}, 3600.0) == 0


def test_copies_are_listed_by_run(root: str) -> None:
    url = copy(root)
    copy(root, "j" * 32, SLOT._replace(run_id="other"))
    found = storage.copies_by_run(root, {}, 0.0)
    assert set(found) == {storage.run_folder("dag", SLOT.run_id), storage.run_folder("dag", "other")}
    (listed,) = found[storage.run_folder("dag", SLOT.run_id)].items()
    assert listed[0] == "i" * 32
    assert bring_back(listed[1].url) == bring_back(url)
    assert listed[1].size_bytes > 0
    assert {storage.run_of(folder) for folder in found} == {("dag", SLOT.run_id), ("dag", "other")}
    assert not any(storage.copies_by_run(root, {}, 3600.0).values()), "all are young"
