"""The daemon's view of the zygotes: starts them, speaks with them, and hears what became of their files.

    Zygotes ──{"t": "parse", file, folder, share_pages, preload} / serve / ahead / discard──▶ zygote (zygote.py)
       │    ◀──parsing / parsed / bundle / offer / ahead──
       └── events ──▶ Admission, which decides what follows from them

A zygote that cannot hold its file ends, but is remembered: until the file changes its tasks parse for themselves. One
that has turned out so later, by an import for its tasks (preload.py), only gets no further task.

What a file makes of the clock, or of chance, when it is parsed (``date.today()``, ``uuid4()``) would be held as well.
So no parse is kept beyond the clock's next multiple of ``zygote_age``: that is when runs begin for which it is another
day, hour or minute.

The bare one is replaced whenever it ends, unless several in a row have ended before a task had started from one: then
there is none for a while, and tasks that need it fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.obituary import describe_exit
from headrace_airflow import admission, sources, speculation
from headrace_airflow.admission import BARE
from headrace_airflow.forks import Child, Forks
from headrace_airflow.loop import Loop
from headrace_airflow.settings import Settings
from headrace_airflow.wire import Message

_MOST_BARE_DEATHS: Final = 3
_REST_S: Final = 60.0


@dataclass(slots=True)
class _Zygote:
    child: Child
    file: admission.FileKey | None
    began: float = field(default_factory=time.time)
    """When its parse began, by the clock."""
    parsed: bool = False
    sources: sources.Sources = field(default_factory=list)
    unfit: str = ""


class Zygotes:
    """Every zygote of the node, by its number; ``BARE`` is the one without a file.

    Args:
        forks: makes their processes.
        loop: where they are heard.
        handle: takes what happened to them.
        log: where to say what concerns no single task.
        settings: what zygotes have to know of them.
    """

    def __init__(
        self,
        forks: Forks,
        loop: Loop,
        handle: Callable[[admission.Event], None],
        log: Callable[[str], None],
        settings: Settings,
    ) -> None:
        self._forks = forks
        self._loop = loop
        self._handle = handle
        self._log = log
        self._age_s = settings.zygote_age_s
        self._orders = {"share_pages": settings.share_pages, "preload": settings.preload}
        self._known: dict[int, _Zygote] = {}
        self._folders: dict[tuple[str, str], str] = {}
        """Where bundles are, by name and version, as tasks that parsed for themselves have told."""
        self._bare_deaths = 0
        """How many bare ones have ended by themselves since a task started from one."""
        self._last_words = ""
        """Why there is no bare one."""
        self._rested_at = 0.0

    def start(self, number: int, file: admission.FileKey | None) -> None:
        """Starts one, which parses the file at once; without a file: the bare one."""
        child = self._forks.fork(
            "zygote",
            lambda message, _fds: self._hear(number, message),
            lambda code: self._exited(number, child, code),
        )
        self._known[number] = _Zygote(child, file)
        folder = self._folders.get(file[:2], "") if file else ""
        child.channel.send({"t": "parse", "file": file, "folder": folder, **self._orders})

    def stop(self, number: int) -> None:
        """Forgets one; it ends when it has nothing left to serve."""
        if zygote := self._known.pop(number, None):
            self._loop.forget(zygote.child.channel)

    def send(self, number: int, message: Message, fds: Sequence[int] = ()) -> None:
        """Sends a message; if the zygote is gone nothing, and whoever waits at the other end of ``fds`` sees that."""
        if (zygote := self._known.get(number)) is not None:
            zygote.child.channel.send(message, fds)

    def lacks(self, number: int) -> str:
        """Why no task can start from a zygote; empty: one can. A bare one that is missing is tried again now and then.

        Those of files are always there when asked for: whatever becomes of them is an event.
        """
        if number != BARE or BARE in self._known:
            return ""
        if self._bare_deaths and time.monotonic() < self._rested_at:
            return self._last_words
        self.start(BARE, None)
        return ""

    def has_started(self, number: int) -> None:
        """A task has started from one."""
        if number == BARE:
            self._bare_deaths = 0

    def with_files(self) -> list[int]:
        """The numbers of those that are for a file."""
        return [number for number in self._known if number != BARE]

    def is_stale(self, number: int) -> bool:
        """Whether what a zygote was made from has changed since, the time included; not while it is being made."""
        zygote = self._known.get(number)
        if zygote is None or not (zygote.parsed or zygote.unfit):
            return False
        return self._is_of_before(zygote) or sources.changed(zygote.sources) is not None

    def _is_of_before(self, zygote: _Zygote) -> bool:
        """Whether another period of the clock has begun; that is nothing to what holds no parse."""
        return self._age_s > 0 and not zygote.unfit and time.time() // self._age_s != zygote.began // self._age_s

    def describe(self) -> list[Message]:
        """For people."""
        return [
            {"pid": z.child.pid, "file": z.file, "unfit": z.unfit, "sources": len(z.sources)}
            for z in self._known.values()
        ]

    def _hear(self, number: int, message: Message) -> None:
        if (zygote := self._known.get(number)) is None:
            return
        match message["t"]:
            case "parsing":
                zygote.sources = _sources_in(message)
            case "parsed":
                self._note_parsed(number, zygote, message)
            case "bundle":
                self._note_folder(tuple(message["bundle"]), message["folder"])
            case "offer":
                self._handle(
                    speculation.ConsumerOffered(
                        message["id"], speculation.Instance(*message["instance"]), number,
                        frozenset(message["feeders"]), message["cpus"], message["memory_bytes"],
                    )
                )  # fmt: skip
            case "ahead":
                gone = message["state"] == "gone"
                self._handle((speculation.AheadGone if gone else speculation.AheadDone)(message["id"]))

    def _note_parsed(self, number: int, zygote: _Zygote, message: Message) -> None:
        zygote.parsed = True
        zygote.sources = _sources_in(message)
        zygote.unfit = message["unfit"]
        if zygote.unfit:
            self._log(f"tasks of {zygote.file} parse for themselves: {zygote.unfit}")
        self._handle((admission.ZygoteUnfit if zygote.unfit else admission.ZygoteReady)(number))

    def _note_folder(self, bundle: tuple[str, str], folder: str) -> None:
        """A task has found its bundle: those of its files that could not be held are tried again, once."""
        if self._folders.get(bundle) == folder:
            return
        self._folders[bundle] = folder
        for number, zygote in list(self._known.items()):
            if zygote.unfit and zygote.file is not None and zygote.file[:2] == bundle:
                self._handle(admission.SourcesChanged(number, ""))

    def _exited(self, number: int, child: Child, code: int) -> None:
        zygote = self._known.get(number)
        if zygote is None or zygote.child is not child or zygote.unfit:
            return
        if number == BARE:
            self._bare_exited(code)
            return
        self._log(f"the zygote of {zygote.file} ended by itself: {describe_exit(code)}")
        zygote.unfit = f"{'holding' if zygote.parsed else 'parsing'} it ended the process: {describe_exit(code)}"
        self._handle(admission.ZygoteDied(number))

    def _bare_exited(self, code: int) -> None:
        self._log(f"the bare zygote ended by itself: {describe_exit(code)}")
        if not self._forks.ready:  # it has gone with the origin, and comes with the next one
            return
        self._bare_deaths += 1
        if self._bare_deaths < _MOST_BARE_DEATHS:
            self.start(BARE, None)
            return
        del self._known[BARE]
        self._rested_at = time.monotonic() + _REST_S
        self._last_words = (
            f"There is no process that this task could start from: the last {self._bare_deaths} ended by themselves "
            f"before any task had started ({describe_exit(code)}); see the Headrace daemon's log"
        )
        self._log(f"tasks that need the bare zygote fail for {_REST_S:.0f} s; the first one after that tries again")


def _sources_in(message: Message) -> sources.Sources:
    return [(path, state) for path, state in message["sources"]]
