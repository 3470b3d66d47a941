"""The store service as a process of its own, where no node daemon hosts it.

    python -m headrace_airflow.store_service < settings        goes into the background; returns once it can be reached
    python -m headrace_airflow.store_service --foreground < settings

Two that start at once: one gets the lock, the other sees that and is content. SIGTERM: ends when every durable copy is
there, or has failed; a second SIGTERM: at once.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Final

from headrace_airflow.processes import take_all_descriptors
from headrace_airflow.store.errors import StoreUnreachableError
from headrace_airflow.store.home import Home
from headrace_airflow.store.service import StoreService
from headrace_airflow.store.settings import StoreSettings

_WAIT_FOR_LOCK_S: Final = 30.0
_MOST_LOG_BYTES: Final = 1 << 20


def main() -> None:
    settings = StoreSettings.from_json(sys.stdin.read())
    if "--foreground" in sys.argv[1:]:
        _serve(settings, None)
    else:
        _detach(settings)


def _detach(settings: StoreSettings) -> None:
    """Single-threaded and freshly started, so it may fork. The parent leaves when the child can be reached."""
    ours, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            error = pipe.read()
        if error:
            sys.exit(error.decode())
        return
    os.close(ours)
    os.setsid()
    if not os.fork():
        try:
            _serve(settings, theirs)
        except SystemExit:
            pass
        except BaseException:  # the fork must not go on as whoever asked for a store
            traceback.print_exc()
    os._exit(0)


def _serve(settings: StoreSettings, ready: int | None) -> None:
    try:
        service = _open(settings)
        if ready is not None:
            _leave_terminal(service.home.log)
    except Exception as error:
        if ready is None:
            raise
        os.write(ready, str(error).encode()[:4000])
        return
    if ready is not None:
        os.close(ready)
    take_all_descriptors()
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stops.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while not service.ended and len(stops) < 2:
        service.handle(min(1.0, service.timeout_s()))
        if stops:
            service.begin_end()
    for url in service.close():
        sys.stderr.write(f"lost: {url} could not be written\n")


def _open(settings: StoreSettings) -> StoreService:
    """Waits for a service that is just ending; if one is at work that is as good.

    Raises:
        SystemExit: there is one.
    """
    home = Home(settings.home)
    end_s = time.monotonic() + _WAIT_FOR_LOCK_S
    while True:
        try:
            return StoreService(settings, ends_when_idle=True)
        except StoreUnreachableError:
            sock = home.connect()
            if sock is not None:
                sock.close()
                sys.exit(0)
            if time.monotonic() > end_s:
                raise
            time.sleep(0.02)  # it is about to listen, or to leave: there is nothing to wait on


def _leave_terminal(log: Path) -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    size = log.stat().st_size if log.exists() else 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if size > _MOST_LOG_BYTES else 0)
    file = os.open(log, flags, 0o600)
    for fd, number in ((null, 0), (null, 1), (file, 2)):
        os.dup2(fd, number)
    os.close(null)
    os.close(file)


if __name__ == "__main__":
    main()
