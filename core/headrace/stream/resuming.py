"""What happens to those who read a stream when its producer has died and is run again.

::

    producer's steps ── raise MadeAgain ──> the source begins anew: attempt + 1, nothing is made yet
                                              │
        a reader with an Attempt that has read of an earlier one ── OutdatedError: its task begins again, too
        any other reader                                         ── goes on after as many items as it has had

A task has an :class:`Attempt` in each of its handles unless its function is :func:`resumable`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

from headrace.stream.steps import close_steps

if TYPE_CHECKING:
    from headrace.stream.kept import Claim

_MARK: Final = "__headrace_resumable__"

Fn = TypeVar("Fn", bound=Callable[..., Any])


def resumable(fn: Fn) -> Fn:
    """Declares that a stage may go on in the middle of a stream when a process has died. A decorator.

    Where nothing dies it changes nothing. It declares two things of the function:

    1. An item is worth the same to it whichever attempt of its producer has made it. So if a producer has to be run
       again, the function goes on after as many items as it has had. (Others begin again from the start, and what they
       have yielded is taken back: whoever has read that begins again as well.)
    2. If it is a generator function that reads one stream, once, item by item: it keeps nothing from one item to the
       next (in stream processing: it is stateless). So if its own process dies, another one goes on with the item that
       the function was at; what it had yielded for that one is left out. It is not given again what it had finished: an
       item is finished when the next one is asked for and this process has heard of it, with all that was yielded for
       it. That is told with whatever is yielded, and every few milliseconds. What the function yields before its first
       item and after its last one is yielded once.

    Whatever the function does elsewhere (files, requests) happens once for each finished item, and perhaps more than
    once for those of the last milliseconds. A function that returns a value depends on all items, and if its own
    process dies it is run again from the start; so is one that reads several streams.

    The declaration is an attribute of the function: it survives pickling, ``functools.partial``, methods,
    ``functools.wraps`` and ``dask.delayed``, which is to be put around it.

    Args:
        fn: a function, a method, a partial, or an object that can be called. It is changed; no other thread may be
            declaring it at the same time.

    Returns:
        The same object.

    Raises:
        TypeError: it cannot be called, or takes no attributes, as a built-in function.
    """
    if not callable(fn):
        raise TypeError(f"resumable() needs a function, not {fn!r}")
    try:
        setattr(getattr(fn, "__func__", fn), _MARK, True)
    except (AttributeError, TypeError) as error:
        raise TypeError(f"{fn!r} takes no attributes: declare a function that calls it") from error
    return fn


def is_resumable(fn: Any) -> bool:
    """Whether a function was declared to be, as it is or inside a partial."""
    while True:
        if getattr(fn, _MARK, False) is True:
            return True
        if not isinstance(fn, functools.partial):
            return False
        fn = fn.func


class MadeAgain(Exception):
    """Raised by a producer's steps: from now on all items are made once more, by ``steps``, and none so far counts."""

    def __init__(self, steps: Iterator[Any]) -> None:
        super().__init__()
        self.steps = steps


class OutdatedError(BaseException):
    """Raised in a task that has read items which do not count any more. No ``Exception``: tasks do not handle it."""


class Attempt:
    """Of which attempt of a stream's producer a task has read. For one handle, which may be read by several threads.

    Attributes:
        thread: of the task.
        outdated: whether it has been told that that is not the present one any more.
        claim: then a place at the start of the present one.
    """

    __slots__ = ("_number", "claim", "outdated", "thread")

    def __init__(self) -> None:
        self._number = -1
        self.thread = threading.get_ident()
        self.outdated = False
        self.claim: Claim | None = None

    def covers(self, number: int) -> bool:
        """Whether the task may read of this attempt: its first one."""
        if self._number < 0:
            self._number = number
        return self._number == number


def unbroken(steps: Iterator[Any]) -> Iterator[Any]:
    """The same items, each once: of what is made again those are left out that have been made before."""
    made = 0
    again: Iterator[Any] | None = steps
    while again is not None:
        steps, again = again, None
        try:
            for item in islice(steps, made, None):
                made += 1
                yield item
        except MadeAgain as made_again:
            again = made_again.steps
        finally:
            close_steps(steps)
