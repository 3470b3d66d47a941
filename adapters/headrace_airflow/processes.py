"""What the kernel does for a tree of processes in which nothing may be left behind.

The tree, and what ends each part of it::

    daemon          ends itself when nobody needs it
    ├── store's I/O     ends when its jobs are done
    └── origin          killed with the daemon (parent-death signal)
        ├── supervisor      killed with the origin; its zygote then kills its task
        ├── pulse           killed with the origin
        └── zygote          killed with the origin
            ├── task            killed with the zygote; a process group of its own
            ├── task's worker   killed with the zygote, and when its task has ended; in the group of the task
            └── ahead of one    likewise, in a group of its own until it has a task
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Collection
from typing import Final

from headrace.store.kernel import prctl

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_MEMORY_MERGE: Final = 67

_MORE_EXPENDABLE: Final = 300
"""As if it used so many thousandths of the machine's memory more."""
_FORK_SAFE: Final = frozenset({"jemalloc_bg_thd"})


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when the thread that made it ends.

    Args:
        parent: the pid of the one that made it, as that knew it: if it is gone already, this process ends now.
    """
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def hide_memory() -> None:
    """Other processes of the same user can no longer read this one's memory, environment or descriptors."""
    prctl(_PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Grandchildren whose parent died become children of this process, so that it can end them."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def share_equal_pages() -> None:
    """Has the kernel keep one copy of equal pages of this process and of those that it forks.

    It does so only where an administrator has its same-page merging run (KSM), and from Linux 6.4.
    """
    try:
        prctl(_PR_SET_MEMORY_MERGE, 1)
    except OSError:  # it cannot
        pass


def be_first_to_go() -> None:
    """When the machine runs out of memory, the kernel shall kill this process and not one that others depend on."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            file.write(str(min(int(file.read()) + _MORE_EXPENDABLE, 1000)))
    except OSError:  # no such file in some sandboxes
        pass


def threads_of_this_process() -> int:
    """How many threads the kernel counts, those of C libraries included.

    Without jemalloc's (pyarrow brings one): it stops its thread for a fork and starts it again, in the child too.
    """
    names = []
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/comm") as file:
                names.append(file.read().strip())
        except FileNotFoundError:  # it has just ended
            pass
    return sum(name not in _FORK_SAFE for name in names)


def set_title(title: str) -> None:
    """What process listings show of this process; nothing where setproctitle is not installed."""
    try:
        from setproctitle import setproctitle
    except ImportError:
        return
    setproctitle(title)


def kill_group(pid: int) -> None:
    """Kills the process group that a task leads, and the task itself if it has none yet."""
    for kill in (os.killpg, os.kill):  # the first may come before the group is made
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def end_children(but: Collection[int] = ()) -> None:
    """Kills every child of this process, adopted ones too, until there is none but these."""
    while children := _children(but):
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass


def reap_adopted(but: Collection[int]) -> None:
    """Lets go of children that have ended; these are others' to wait for."""
    for pid in _children(but):
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass


def _children(but: Collection[int]) -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [pid for pid in map(int, file.read().split()) if pid not in but]


def take_all_descriptors() -> tuple[int, int]:
    """Allows this process as many descriptors as it may have; returns the limits of before, for its children."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit_descriptors((before[1], before[1]))
    return before


def limit_descriptors(limits: tuple[int, int]) -> None:
    """Allows this process so many descriptors, as ``RLIMIT_NOFILE`` has them: (soft, hard)."""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    except (ValueError, OSError):  # a sandbox that forbids it
        pass
