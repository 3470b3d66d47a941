"""Nothing outlives the owner: how a worker dies with it, whatever the worker is doing.

Three nets, because each has a hole:

- The kernel kills the whole process group when the last writer of the *life* pipe is gone (``F_SETSIG``): that reaches
  also what tasks have started, and needs no thread that gets the GIL. A process that forks without Python's hooks may
  hold a copy of the pipe.
- ``PR_SET_PDEATHSIG`` knows no pipes, but kills only the worker; it fires when the *thread* that started it ends, so
  often before the owner's descriptors are closed. The owner has the end that the worker listens at open, too, or the
  pipe would be forgotten with the worker.
- End of file at the socket: seen by the io thread, so only when it gets the GIL.
"""

from __future__ import annotations

import fcntl
import os
import signal
from typing import Final, NoReturn

from headrace.store import kernel

_F_SETSIG: Final = 10
_PR_SET_PDEATHSIG: Final = 1


def die_with_owner(life_fd: int, with_thread: bool = True) -> None:
    """Called by a worker. An owner that died before is seen at the socket.

    A worker that does not lead its process group belongs to its owner's: that one ends what is in it. ``with_thread``:
    it dies with the thread that started it too.
    """
    if with_thread:
        try:
            kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        except OSError:
            pass  # the other nets hold
    try:
        fcntl.fcntl(life_fd, fcntl.F_SETOWN, -os.getpgrp() if os.getpgrp() == os.getpid() else os.getpid())
        fcntl.fcntl(life_fd, _F_SETSIG, int(signal.SIGKILL))
        fcntl.fcntl(life_fd, fcntl.F_SETFL, fcntl.fcntl(life_fd, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError:
        pass  # a kernel without it (gVisor): the other nets hold


def kill_own_group() -> NoReturn:
    """The end, for this process and for what its tasks have started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)
    os._exit(1)
