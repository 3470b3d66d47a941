"""Durable copies: files behind a URL. Blocks as long as the disk or the network takes: never called in the service.

Local paths (no scheme, or ``file``) are written with plain calls, synced and renamed; everything else goes through
fsspec. Object stores show a file only once it is whole; for other filesystems a temporary name is renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import time
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from headrace_airflow.store import image
from headrace_airflow.store.ledger import Slot

_CHUNK_BYTES: Final = 8 << 20
_LARGE_BYTES: Final = 16 << 20
_ATOMIC: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "r2", "memory"})
_LONGEST_NAME: Final = 120
_PARTIAL_LASTS_S: Final = 86400.0
SUFFIX: Final = ".headrace"
PARTIAL: Final = ".part"
MOST_EXTRA_BYTES: Final = image.MOST_FOOTER_BYTES + 4096
"""How much longer than the image a durable copy may be."""


def url_of(root: str, slot: Slot, id: str) -> str:
    """Where the durable copy of an object stands."""
    folders = [_name(part) for part in (slot.dag_id, slot.run_id, slot.task_id, str(slot.map_index))]
    return "/".join([root.rstrip("/"), *folders, f"{_name(slot.key)}-{id}{SUFFIX}"])


def local_path(url: str) -> Path | None:
    """The path that a URL stands for, if it is one of this machine's own files."""
    if "://" not in url:
        return Path(url)
    return Path(url[len("file://") :]) if url.startswith("file://") else None


def write(url: str, options: dict[str, Any], source: int | bytes, size_bytes: int, info: dict[str, Any]) -> None:
    """Makes a durable copy: all of it or, if this raises or the process dies, nothing under its name.

    Args:
        url: as ``url_of`` says.
        options: for fsspec.
        source: a descriptor whose file begins with the image, or the image itself.
        size_bytes: length of the image.
        info: what the footer shall say besides length and checksum.

    Raises:
        OSError: the disk is full, the URL unreachable, or whatever fsspec raises.
    """
    path = local_path(url)
    if path is not None:
        _write_local(path, source, size_bytes, info)
        return
    fs, where = _open_fs(url, options)
    target = where if url.split("://")[0] in _ATOMIC else f"{where}.{os.getpid()}{PARTIAL}"
    fs.makedirs(where.rpartition("/")[0], exist_ok=True)
    with fs.open(target, "wb") as file:
        for chunk in _with_footer(source, size_bytes, info):
            file.write(chunk)
    if target != where:
        fs.mv(target, where)


def read(url: str, options: dict[str, Any], id: str, target: int | None) -> int | None:
    """Brings a durable copy back, and verifies it.

    Args:
        url: where it is.
        options: for fsspec.
        id: of the object that it must be.
        target: a descriptor to write the whole copy to; for a local file it is not touched.

    Returns:
        For a local file its own descriptor, else ``None``. The file begins with the image; the footer is behind it.

    Raises:
        FileNotFoundError: there is none.
        BadImageError: it is damaged, or another object's.
        OSError: it cannot be read, or the target cannot be written.
    """
    path = local_path(url)
    if path is not None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _verify(fd, id, os.fstat(fd).st_size)
            with contextlib.suppress(OSError):
                os.utime(path)  # for ``sweep``: its run is in use
            return fd
        except BaseException:
            os.close(fd)
            raise
    if target is None:
        raise ValueError(f"{url} needs a target")
    fs, where = _open_fs(url, options)
    done = 0
    with fs.open(where, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            _write_all(target, chunk, done)
            done += len(chunk)
    _verify(target, id, done)
    return None


def erase(url: str, options: dict[str, Any]) -> None:
    """Removes a durable copy, and folders that are empty then. A missing one is no error."""
    path = local_path(url)
    if path is None:
        fs, where = _open_fs(url, options)
        if fs.exists(where):
            fs.rm_file(where)
        return
    path.unlink(missing_ok=True)
    for folder in list(path.parents)[:4]:
        try:
            folder.rmdir()
        except OSError:
            return


def sweep(root: str, options: dict[str, Any], ttl_s: float, keep: Collection[str] = ()) -> int:
    """Removes runs whose newest copy is older than ``ttl_s``, and what dead writers left; returns how many files.

    Args:
        root: where all copies stand.
        options: for fsspec.
        ttl_s: reading a local copy makes it as new; other places do not tell when something was read.
        keep: runs, as ``run_folder`` calls them, that are known to be in use.
    """
    now_s = time.time()
    removed = 0
    for folder, copies in _by_run(root, options).items():
        newest_s = now_s if folder in keep else max(copy.changed_s for copy in copies)
        for copy in copies:
            partial = copy.url.endswith(PARTIAL)
            if now_s - (copy.changed_s if partial else newest_s) > (_PARTIAL_LASTS_S if partial else ttl_s):
                erase(copy.url, options)
                removed += 1
    return removed


class Copy(NamedTuple):
    """A durable copy, or what a writer has begun."""

    url: str
    size_bytes: int
    changed_s: float
    """When it was written or, if it is a local one, read."""

    @property
    def id(self) -> str:
        return self.url.rpartition("-")[2].removesuffix(SUFFIX)


def copies_by_run(root: str, options: dict[str, Any], young_s: float = 0.0) -> dict[str, dict[str, Copy]]:
    """Run (as ``run_folder`` calls it) → id → every durable copy that is older than ``young_s``."""
    before_s = time.time() - young_s
    return {
        folder: {copy.id: copy for copy in copies if copy.url.endswith(SUFFIX) and copy.changed_s <= before_s}
        for folder, copies in _by_run(root, options).items()
    }


def run_folder(dag_id: str, run_id: str) -> str:
    """Where, below the root, the durable copies of a run stand."""
    return f"{_name(dag_id)}/{_name(run_id)}"


def run_of(folder: str) -> tuple[str, str]:
    """DAG and run of a ``run_folder``; very long names come back shortened."""
    dag_id, _, run_id = folder.partition("/")
    return unquote(dag_id), unquote(run_id)


def _by_run(root: str, options: dict[str, Any]) -> dict[str, list[Copy]]:
    base = local_path(root)
    found: dict[str, list[Copy]] = {}
    for copy in _local_copies(root, base) if base is not None else _remote_copies(root, options):
        found.setdefault("/".join(copy.url.rsplit("/", 5)[1:3]), []).append(copy)
    return found


def _local_copies(root: str, base: Path) -> Iterator[Copy]:
    for folder, _, names in os.walk(base):  # unlike glob, it does not mind folders that are erased meanwhile
        for path in [Path(folder, name) for name in names if name.endswith((SUFFIX, PARTIAL))]:
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                yield Copy(f"{root.rstrip('/')}/{path.relative_to(base)}", found.st_size, found.st_mtime)


def _remote_copies(root: str, options: dict[str, Any]) -> Iterator[Copy]:
    fs, where = _open_fs(root, options)
    scheme = root.split("://")[0]
    for name in fs.find(where) if fs.exists(where) else []:
        if name.endswith((SUFFIX, PARTIAL)):
            yield Copy(f"{scheme}://{name}", fs.size(name), fs.modified(name).timestamp())


def _write_local(path: Path, source: int | bytes, size_bytes: int, info: dict[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    fd = _create(partial)
    try:
        done = 0
        for chunk in _with_footer(source, size_bytes, info):
            _bypass_cache(fd, size_bytes >= _LARGE_BYTES and chunk.nbytes == _CHUNK_BYTES)
            done += _write_all(fd, chunk, done)
        os.fdatasync(fd)
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _bypass_cache(fd: int, on: bool) -> None:
    """While a value is in memory, a second copy in the page cache only takes room and time. Only for whole chunks."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError:  # a filesystem that cannot do so
        pass


def _bypasses_cache(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def _create(path: Path) -> int:
    for last in (False, False, True):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # somebody erased the last file of the folder, and the folder, just now
            if last:
                raise
    raise AssertionError("unreachable")


def _with_footer(source: int | bytes, size_bytes: int, info: dict[str, Any]) -> Iterator[memoryview]:
    checksum = 0
    for chunk in _chunks(source, size_bytes):
        checksum = zlib.crc32(chunk, checksum)
        yield chunk
    yield memoryview(image.footer({**info, "bytes": size_bytes, "crc32": checksum}))


def _chunks(source: int | bytes, size_bytes: int) -> Iterator[memoryview]:
    if isinstance(source, bytes):
        yield memoryview(source)
        return
    memory = mmap.mmap(-1, _CHUNK_BYTES)  # begins with a page, as writing past the page cache demands
    done = 0
    while done < size_bytes:
        count = os.preadv(source, [memoryview(memory)[: size_bytes - done]], done)
        if not count:
            raise image.BadImageError(f"the memory ends after {done} of {size_bytes} bytes")
        yield memoryview(memory)[:count]
        done += count


def _verify(fd: int, id: str, size: int) -> None:
    """Raises BadImageError unless the first ``size`` bytes of a file are a whole copy of this object."""
    tail = os.pread(fd, image.TAIL_BYTES, max(0, size - image.TAIL_BYTES))
    length = image.footer_bytes(tail)
    info = image.read_footer(os.pread(fd, length, max(0, size - length)))
    if info.get("id") != id or info.get("bytes") != size - length:
        raise image.BadImageError("it is another object, or cut off")
    checksum = 0
    for chunk in _chunks(fd, size - length):
        checksum = zlib.crc32(chunk, checksum)
    if checksum != info.get("crc32"):
        raise image.BadImageError("its checksum is wrong")


def _write_all(fd: int, chunk: bytes | memoryview, offset: int) -> int:
    view = memoryview(chunk)
    done = 0
    while done < view.nbytes:
        try:
            done += os.pwrite(fd, view[done:], offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL or not _bypasses_cache(fd):
                raise
            _bypass_cache(fd, False)  # it could not after all, or not from the middle of a chunk
    return done


def _open_fs(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # takes a while, and local paths do without

    fs, where = url_to_fs(url, **options)
    return fs, where


def _name(part: str) -> str:
    """A part of a slot's name as a name of a file or folder, never empty nor special."""
    text = quote(part, safe="+:@=,~ ") or "%"
    if text.strip(".") == "":
        text = "%2E" * len(text)
    if len(text) <= _LONGEST_NAME:
        return text
    import hashlib

    return f"{text[: _LONGEST_NAME - 20]}~{hashlib.sha256(part.encode()).hexdigest()[:16]}"
