"""One stage, from its start to its end, over as many attempts as it takes: :class:`Stage`.

An attempt is over early if its process dies, if it turns out that the stage can only run in this process, or if a
stream that it reads is made again. The next one begins with its inputs from their start, and what was yielded so far
does not count: whoever reads it is told so (:class:`headrace.stream.resuming.MadeAgain`). A function that was declared
to be resumable is spared this where it can be.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from headrace.errors import WorkerDied
from headrace.lanes.processes.failures import explain_unpicklable
from headrace.lanes.stages.feeder import Inputs
from headrace.lanes.stages.process import LostError, StageProcess, UnfitError
from headrace.program import run_program, spared
from headrace.stream.handle import Stream, afresh
from headrace.stream.resuming import MadeAgain, is_resumable
from headrace.stream.steps import PRODUCERS, steps_of
from headrace.task import call_nested

if TYPE_CHECKING:
    from headrace.shell.moving import Moving


class Stage:
    """A stage's call; for one thread.

    Args:
        moving: where its processes come from.
        key: of its task, for messages.
        forced: it is to run in a process, if it can.
        args: whose streams are the task's own handles.
    """

    def __init__(self, moving: Moving, key: str, forced: bool, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._moving = moving
        self._key = key
        self._forced = forced
        self._fn = fn
        self._args = args
        self._kwargs = kwargs
        self._deaths = 0
        self._inputs = self._new_inputs(False)

    def call(self, process: StageProcess | None) -> Any:
        """Its value; a generator, if it makes a stream. In this process if there is no other."""
        while True:
            self._begin()
            try:
                streams, value = self._run(process)
            except UnfitError as unfit:
                self._stay_here(process, unfit)
                process = None
            except LostError as death:
                process = self._replace(process, death)
            except BaseException:  # whatever it has made of items that no longer count, it is run again
                if not self._outdated:
                    self._give_back(process)
                    raise
            else:
                if streams:
                    return self._items(process, value)
                if not self._outdated:
                    self._give_back(process)
                    return value
            self._begin_again()

    def _begin(self) -> None:
        goes_on = _goes_on(self._fn, self._args)
        self._inputs = self._new_inputs(goes_on)
        if not goes_on:
            for stream in streams_in(self._args):
                stream.begin_again()

    def _new_inputs(self, resumable: bool) -> Inputs:
        # They do not lead back to the stage: it goes, and with it its handles, as soon as it has ended.
        feeding, thread = self._moving.feeding, threading.get_ident()
        return Inputs(lambda feeder, begins: feeding(feeder, thread if begins else 0), resumable)

    def _run(self, process: StageProcess | None) -> tuple[bool, Any]:
        if process is None:
            value = self._fn(*spared(self._fn, self._args), **(self._kwargs or {}))
            streams = type(value) in PRODUCERS
            return streams, steps_of(value) if streams else value
        self._moving.about_to_wait()  # it needs no slot of this process
        return process.run(self._fn, self._args, self._kwargs, self._inputs)

    def _items(self, process: StageProcess | None, items: Iterator[Any] | None) -> Iterator[Any]:
        while True:  # with no items, it is resumed
            try:
                yield from self._run(process)[1] if items is None else items
            except UnfitError as unfit:
                self._stay_here(process, unfit)
                process = None
            except LostError as death:
                process = self._replace(process, death)
                if self._inputs.can_resume:
                    items = None
                    continue
            except BaseException as error:  # likewise
                if isinstance(error, GeneratorExit) or not self._outdated:
                    self._give_back(process)
                    raise
            else:
                if not self._outdated:
                    self._give_back(process)
                    return
            self._begin_again()
            raise MadeAgain(steps_of(self.call(process)))

    @property
    def _outdated(self) -> bool:
        """Whether what it has read does not count any more, whatever it has made of that."""
        return any(stream.outdated for stream in streams_in(self._args))

    def _begin_again(self) -> None:
        self._inputs.stop()
        self._args = [afresh(arg) for arg in self._args]

    def _give_back(self, process: StageProcess | None) -> None:
        self._inputs.stop()
        if process is not None:
            self._moving.pool.give_back(process)

    def _replace(self, process: StageProcess | None, death: LostError) -> StageProcess:
        """After a death: another process."""
        assert process is not None
        self._moving.pool.drop(process)
        self._deaths += 1
        another = self._moving.another(self._forced) if self._deaths < self._moving.max_deaths else None
        if another is None:  # what takes processes down shall not run here
            self._inputs.stop()
            raise WorkerDied(self._key, self._deaths, str(death))
        return another

    def _stay_here(self, process: StageProcess | None, unfit: UnfitError) -> None:
        """The stage can only run here; if it is to run elsewhere, that is an error, unless something says so."""
        assert process is not None
        self._inputs.stop()
        self._moving.pool.drop(process)
        if self._forced and unfit.stays is False:
            raise explain_unpicklable(str(unfit), self._key, unfit, stays=False)


def streams_in(args: Any) -> list[Stream]:
    """The streams among arguments, also in lists."""
    found: list[Stream] = []
    for arg in args:
        if type(arg) is Stream:
            found.append(arg)
        elif type(arg) is list:
            found += [item for item in arg if type(item) is Stream]
    return found


def _goes_on(fn: Callable[..., Any], args: Any) -> bool:
    """Whether whatever reads streams in a call was declared to be resumable."""
    if fn is call_nested:
        return is_resumable(args[0])
    if fn is not run_program:
        return is_resumable(fn)
    return all(is_resumable(step[0]) for step in args[0] if _reads_inputs(step))


def _reads_inputs(step: Any) -> bool:
    """Whether a step of a program gets what the program is given."""
    _, _, _, holes = step
    return any(source < 0 if isinstance(source, int) else min(source, default=0) < 0 for _, source in holes)
