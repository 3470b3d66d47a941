"""What is asked of the kernel in one way everywhere, above all the few calls into libc that Python lacks.

It is the only place in the store that handles addresses.
``mmap.mmap`` duplicates the descriptor it is given for as long as it lives (until 3.13), so a thousand maps would use a
thousand descriptors. Here a map is made in two steps: Python's ``mmap`` reserves anonymous memory, and owns and unmaps
it; ``mmap(MAP_FIXED)`` then lays the file over it. All calls let go of the GIL.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from typing import Final

PAGE: Final = mmap.PAGESIZE
_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
_MADV_REMOVE: Final = 9
_MADV_DONTDUMP: Final = 16
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14
_WRITE_MOST: Final = 1 << 30
"""One write moves at most 2 GiB."""
_MFD_NOEXEC_SEAL: Final = 0x8
"""Linux 6.3; hardened systems (vm.memfd_noexec=2) refuse files without it, older ones do not know it."""

_LEAST_CAPACITY: Final = 64 << 20
"""Limits on address space or file size shrink a file, but not below this."""

_READ_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memcpy.restype = ctypes.c_void_p
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


class _PyBuffer(ctypes.Structure):
    """CPython's ``Py_buffer``; part of its stable ABI."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int)
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_PyBuffer),)
_release_buffer.restype = None


class Map(mmap.mmap):
    """A map, with a place for something that is to live as long as it does."""

    __slots__ = ("reading",)

    reading: object


def address_of(memory: mmap.mmap) -> int:
    """Where a writable map begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def map_file(fd: int, offset: int, length: int, *, shared: bool) -> Map:
    """Maps a range of a file for reading and writing, without holding on to its descriptor.

    Args:
        fd: the file; may be closed afterwards.
        offset: a multiple of the page size.
        length: bytes; pages past the file's end fault with SIGBUS.
        shared: writes go to the file; otherwise they stay in this map (copy-on-write).

    Raises:
        OSError: there is not enough address space, or ``fd`` cannot be mapped so.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    memory = Map(-1, length, flags=flags, prot=_READ_WRITE)
    kind = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
    _map_over(address_of(memory), length, _READ_WRITE, kind | _MAP_NORESERVE, fd, offset)
    return memory


def create_shared(capacity: int) -> tuple[int, mmap.mmap, int]:
    """Makes an anonymous file that cannot change its size, and maps all of it shared.

    Args:
        capacity: bytes. The file is sparse: memory is taken page by page as it is written.

    Returns:
        The descriptor, the map, and the real capacity: less than asked for where limits on address space or file size
        forbid that much.

    Raises:
        OSError: not even 64 MiB are allowed, or no descriptor is left.
    """
    fd = create_file("headrace")
    capacity = -(-capacity // PAGE) * PAGE
    while True:
        try:
            os.ftruncate(fd, capacity)
            memory = map_file(fd, 0, capacity, shared=True)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return fd, memory, capacity
        except OSError:
            if capacity <= _LEAST_CAPACITY:
                os.close(fd)
                raise
            capacity = capacity // 2 // PAGE * PAGE


def create_file(name: str) -> int:
    """Makes an anonymous file that only this user may open, that cannot be executed, and that may be sealed.

    Args:
        name: what it is called in ``/proc``.

    Raises:
        OSError: no descriptor is left.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create(name, flags)
    os.fchmod(fd, 0o600)
    return fd


def write(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of it into a file; into fresh pages that skips both the zeroing and the faults of a copy into a map.

    Args:
        fd: the file.
        data: bytes, or a view of single bytes.
        offset: where they begin in the file.

    Raises:
        OSError: there is no room; some of it may have been written.
    """
    view = memoryview(data)
    done = 0
    while done < view.nbytes:
        done += os.pwrite(fd, view[done : done + _WRITE_MOST], offset + done)


def forbid(address: int, length: int) -> None:
    """Puts memory that cannot be touched in the place of a map, whose owner may still unmap it."""
    _map_over(address, length, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)


def _map_over(address: int, length: int, prot: int, flags: int, fd: int, offset: int) -> None:
    if _libc.mmap(address, length, prot, flags | _MAP_FIXED, fd, offset) != address:
        number = ctypes.get_errno()
        raise OSError(number, f"mmap of {length} bytes: {os.strerror(number)}")


def populate(address: int, length: int) -> None:
    """Has the kernel map pages writable at once instead of at a fault each (five times faster). Best effort."""
    _libc.madvise(address, length, _MADV_POPULATE_WRITE)


def punch(address: int, length: int) -> None:
    """Gives the file's pages under a shared map back to the kernel; they read as zeros afterwards."""
    if _libc.madvise(address, length, _MADV_REMOVE):
        number = ctypes.get_errno()
        raise OSError(number, f"madvise(MADV_REMOVE): {os.strerror(number)}")


def leave_out_of_core_dumps(address: int, length: int) -> None:
    """Keeps a map that is far larger than its contents out of core dumps. Best effort."""
    _libc.madvise(address, length, _MADV_DONTDUMP)


def copy(address: int, source: memoryview) -> None:
    """Copies a contiguous buffer, read-only or not, to an address, without the GIL."""
    view = _PyBuffer()
    _get_buffer(source, ctypes.byref(view), 0)
    try:
        _libc.memcpy(address, view.buf, view.len)
    finally:
        _release_buffer(ctypes.byref(view))


def prctl(option: int, value: int) -> None:
    """Sets something of this process; see prctl(2).

    Raises:
        OSError: the kernel, or a sandbox, does not have it.
    """
    if _libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
