"""A process that can change nothing outside itself, and learns nothing from outside but what it was given.

A function that runs ahead of Airflow may be discarded, and Airflow has not said yet that it may run. If its author has
not either, that is safe only if nobody can tell: what was discarded must leave nothing behind, and what is taken must
be what the task itself would have made. Code does not show whether a function is like that: what ``a.b`` or ``a + b``
does is known when it is done, and a list of what is harmless would be short, and wrong after the next assignment to a
module's attribute. So nothing is predicted here. The function runs, and the kernel watches: the first system call that
could have an effect outside the process, or tell it of the world outside, ends the process before anything is done, and
the task runs the function itself, as ever. It ends the process and does not fail: a function may catch an error, and go
on to another result.

What is left, and why it may be
- memory, threads, sleep: of this process alone. There is no memory that it shares with others, or it does not begin.
- descriptors made after ``reserve``: whoever contains a process has given it these. A file or a connection that the DAG
  file had opened has a lower number, and is refused by it; no path and no address is ever looked up.
- the clock, random numbers, its own pid: no two runs of a function have these in common.

The filter is of classic BPF (seccomp(2)), for x86-64; elsewhere, and where the kernel or a sandbox has none,
nothing can be contained.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from headrace.store.kernel import prctl
from headrace_airflow import processes


class CannotContainError(Exception):
    """There is no way to contain this process."""


def reserve() -> int:
    """Makes every descriptor that this process opens from now on have a number from the one that is returned on."""
    highest = max(map(int, os.listdir("/proc/self/fd")))
    while (last := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) < highest:
        pass
    return last + 1


def contain(first: int) -> None:
    """From now on and for ever, for all threads of this process.

    Args:
        first: descriptors from this number on, and 1 and 2, may be used; see ``reserve``.

    Raises:
        CannotContainError: then it may call what it could call before.
    """
    if (platform.machine(), sys.platform, ctypes.sizeof(ctypes.c_void_p)) != ("x86_64", "linux", 8):
        raise CannotContainError("there is no filter of system calls for this machine")
    if shared := _shared_memory():
        raise CannotContainError(f"it shares memory with other processes: {shared}")
    processes.hide_memory()  # the kernel writes no core file of what it ends
    _install(_filter(first))


def tell_what_is_refused(tell: Callable[[str], object]) -> None:
    """Has the best known of what is refused be told in words before the process is ended for it. For people only.

    Args:
        tell: called with what was tried; shall end the process.
    """

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _TOLD:
            what = arguments[0] if arguments and isinstance(arguments[0], (str, bytes, int)) else ""
            tell(f"{event}({what!r})" if what != "" else event)

    sys.addaudithook(hear)


_TOLD: Final = frozenset({
    "import", "open", "os.listdir", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.scandir",
    "os.system", "socket.connect", "socket.getaddrinfo", "sqlite3.connect", "subprocess.Popen",
})  # fmt: skip


_SYSTEM: Final = "/usr/lib/"
"""The C library maps a table of character sets, to be read."""


def _shared_memory() -> str:
    """A mapping that other processes see, or that sees them; empty: there is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        _, permissions, _, _, _, *rest = line.split(maxsplit=5)
        path = rest[0] if rest else "anonymous"
        is_of_system = permissions.startswith("r-") and path.startswith(_SYSTEM)
        if permissions.endswith("s") and not is_of_system:
            return path
    return ""


# --- the filter ---


class _Step(NamedTuple):
    """An instruction; ``_FAIL`` leads to the next alternative of its rule."""

    code: int
    if_true: int
    if_false: int
    number: int


_FAIL: Final = -1
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_FROM, _IF_ANY_BIT = 0x15, 0x35, 0x45
_ALLOW: Final = _Step(_RETURN, 0, 0, 0x7FFF0000)
_KILL: Final = _Step(_RETURN, 0, 0, 0x80000000)
_NOT_THERE: Final = _Step(_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16
_X86_64: Final = 0xC000003E
_X32_FROM: Final = 0x40000000
"""The numbers of another calling convention begin here."""

Condition = list[_Step]


def _is(argument: int, value: int) -> Condition:
    return [_load(argument), _Step(_IF_EQUAL, 0, _FAIL, value)]


def _has(argument: int, bits: int) -> Condition:
    return [_load(argument), _Step(_AND, 0, 0, bits), _Step(_IF_EQUAL, 0, _FAIL, bits)]


def _lacks(argument: int, bits: int) -> Condition:
    return [_load(argument), _Step(_IF_ANY_BIT, _FAIL, 0, bits)]


def _load(argument: int) -> _Step:
    return _Step(_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument)


_FREE: Final = {
    "close": 3, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "sched_yield": 24, "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39, "exit": 60, "gettimeofday": 96,
    "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204, "restart_syscall": 219,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "set_robust_list": 273,
    "getcpu": 309, "getrandom": 318, "memfd_create": 319, "rseq": 334,
}  # fmt: skip
_WITH_A_DESCRIPTOR: Final = {
    "read": 0, "write": 1, "fstat": 5, "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "sendto": 44,
    "recvfrom": 45, "sendmsg": 46, "recvmsg": 47, "getsockname": 51, "getpeername": 52,
    "getsockopt": 55, "ftruncate": 77,
}  # fmt: skip
"""As their first argument."""
_MMAP, _IOCTL, _SELECT, _SOCKETPAIR, _CLONE, _FCNTL, _NEWFSTATAT, _CLONE3 = 9, 16, 23, 53, 56, 72, 262, 435
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_CLONE_VM_AND_THREAD: Final = 0x100 | 0x10000
_FIONBIO: Final = 0x5421
_F_DUPFD_CLOEXEC: Final = 1030
_AT_EMPTY_PATH: Final = 0x1000


def _filter(first: int) -> list[_Step]:
    """What the kernel asks at every system call."""

    def ours(argument: int) -> Condition:
        is_output = [_Step(_IF_EQUAL, 1, 0, 1), _Step(_IF_EQUAL, 0, _FAIL, 2)]
        return [_load(argument), _Step(_IF_FROM, 2, 0, first), *is_output]

    private = _lacks(3, _MAP_SHARED)
    stream = _is(0, socket.AF_UNIX) + _is(1, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)  # others send to any address
    rules = [
        *(_rule(number, []) for number in _FREE.values()),
        *(_rule(number, ours(0)) for number in _WITH_A_DESCRIPTOR.values()),
        _rule(_MMAP, private + _has(3, _MAP_ANONYMOUS), private + ours(4)),
        _rule(_IOCTL, ours(0) + _is(1, _FIONBIO)),
        _rule(_SELECT, _is(0, 0)),  # sleeps; with descriptors it would tell of them
        _rule(_SOCKETPAIR, stream),
        _rule(_CLONE, _has(0, _CLONE_VM_AND_THREAD)),
        _rule(_FCNTL, ours(0) + _is(1, _F_DUPFD_CLOEXEC)),
        _rule(_NEWFSTATAT, ours(0) + _is(3, _AT_EMPTY_PATH)),  # what newer C libraries do for fstat
    ]
    return [
        _Step(_LOAD, 0, 0, _MACHINE_AT),
        _Step(_IF_EQUAL, 1, 0, _X86_64),
        _KILL,
        _Step(_LOAD, 0, 0, _NUMBER_AT),
        _Step(_IF_FROM, 0, 1, _X32_FROM),
        _KILL,
        _Step(_IF_EQUAL, 0, 1, _CLONE3),  # its flags cannot be seen; C libraries then take clone
        _NOT_THERE,
        *(step for rule in rules for step in rule),
        _KILL,
    ]


def _rule(number: int, *alternatives: Condition) -> list[_Step]:
    """Allows a system call under one of these conditions."""
    block: list[_Step] = []
    for condition in alternatives:
        end = len(condition) + 1  # behind what allows it
        for place, step in enumerate([*condition, _ALLOW], 1):
            if_true, if_false = (end - place if jump == _FAIL else jump for jump in (step.if_true, step.if_false))
            block.append(_Step(step.code, if_true, if_false, step.number))
    return [_Step(_IF_EQUAL, 0, len(block) + 1, number), *block, _KILL]


# --- the kernel ---

_SECCOMP: Final = 317
_SET_MODE_FILTER: Final = 1
_ALL_THREADS: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def _install(steps: Sequence[_Step]) -> None:
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program = _Program(len(steps), code)
    try:
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise CannotContainError(f"there is no filter of system calls: {error.strerror}") from error
    if _libc.syscall(_SECCOMP, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(program)):
        raise CannotContainError(f"there is no filter of system calls: {os.strerror(ctypes.get_errno())}")
