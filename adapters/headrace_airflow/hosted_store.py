"""The node's store in the daemon's process.

A node has one store. The daemon hosts it unless another process does: a task that found none has started one, or it is
another team's daemon. It does not take over from one at work, but hosts the next: values would have to be read from
disk again. Only what waits for nothing runs in the daemon; disks and large copies are other processes' work.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable

from headrace_airflow.loop import Loop
from headrace_airflow.store.errors import StoreUnreachableError
from headrace_airflow.store.home import Home
from headrace_airflow.store.service import StoreService
from headrace_airflow.store.settings import StoreSettings


class HostedStore:
    """The store as a part of the daemon.

    Args:
        settings: as ``StoreSettings.to_json`` has them; empty: there shall be no store.
        loop: the daemon's.
        log: where to say what goes wrong.
    """

    def __init__(self, settings: str, loop: Loop, log: Callable[[str], None]) -> None:
        self._settings = StoreSettings.from_json(settings) if settings else None
        self._loop = loop
        self._log = log
        self._service: StoreService | None = None
        self.host()

    def host(self) -> None:
        """Hosts the store from now on, unless somebody does; to be called now and then."""
        if self._service is not None or self._settings is None:
            return
        try:
            self._service = StoreService(self._settings)
        except OSError as error:
            if type(error) is not StoreUnreachableError:  # that is: somebody else hosts it, for now
                self._log(f"the store is not hosted here: {error}")
                self._settings = None
            return
        self._loop.watch(self._service, self._handle)

    def timeout_s(self) -> float:
        """After how many seconds ``look`` should be called even if nothing happens."""
        return math.inf if self._service is None else self._service.timeout_s()

    def look(self) -> None:
        """Has the store do what is due."""
        if self._service is not None and not self._service.timeout_s():
            self._handle()

    def io_pids(self) -> set[int]:
        """Children of the daemon that the store looks after."""
        return set() if self._service is None else set(self._service.io_pids())

    def lasting_pids(self) -> set[int]:
        """Processes of the store that may be children of the daemon, and that end by themselves."""
        if self._service is not None:
            return self.io_pids()
        serving = Home(self._settings.home).serving() if self._settings is not None else None
        return set() if serving is None else {serving}

    def finish(self) -> None:
        """Makes every durable copy, and ends. Blocks; who reads or writes values meanwhile is served."""
        if self._service is not None:
            self._loop.unwatch(self._service)
            self._say_lost(self._service.finish())
            self._service = None

    def _handle(self) -> None:
        assert self._service is not None
        try:
            self._service.handle()
        except Exception:  # a bug of the store must not end tasks
            self._log(f"the store broke, and begins afresh:\n{traceback.format_exc()}")
            self._close()
        else:
            if self._service.ended:
                self._close()

    def _close(self) -> None:
        assert self._service is not None
        self._loop.unwatch(self._service)
        self._say_lost(self._service.close())
        self._service = None

    def _say_lost(self, urls: list[str]) -> None:
        for url in urls:
            self._log(f"lost: {url} could not be written")
