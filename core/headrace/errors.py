"""Every error that Headrace raises on its own account.

The tree has five branches, because the reader of a traceback needs to know whose move it is::

    HeadraceError
    ├── UserError               the caller can mend it
    │   ├── ConfigError             a setting has a value that cannot be used
    │   ├── GraphError              the graph itself is wrong
    │   │   ├── CycleError              (also a RuntimeError)
    │   │   ├── BadKeyError             (also a TypeError) something that cannot be a key was asked for
    │   │   └── MissingKeyError         (also a KeyError)
    │   │       └── MissingDependencyError  (also a ValueError)
    │   └── UnpicklableError        (also a TypeError) names the path to the object
    │       └── MustStayHere            the object must not leave this process, and a task that holds it runs here
    ├── WorkerDied              (also a RuntimeError) a worker process took its task down with it
    ├── StreamError             (also a RuntimeError) a stream cannot be read any further, or not once more
    ├── NoThreadError           (also a RuntimeError) this process may not start another thread
    └── InternalError           an invariant of Headrace broke: a bug of ours

A user's own exception is never wrapped: it reaches the caller as itself, with the remote traceback as its cause
(:class:`RemoteTraceback`), or with one that names the task if a result raised it when it was read here.
"""

from __future__ import annotations

NOT_STARTED = "not started"
"""With what the reason begins of a worker that died before it could run anything."""


class HeadraceError(Exception):
    """Root of every error that Headrace raises on its own account."""


class UserError(HeadraceError):
    """Something the caller passed in cannot work; the message says what to do."""


class ConfigError(UserError):
    """A setting has a value that cannot be used."""


class GraphError(UserError):
    """The graph handed in is not a graph that can run."""


class CycleError(GraphError, RuntimeError):
    """Tasks depend on each other in a circle."""


class MissingKeyError(GraphError, KeyError):
    """A key is asked for, or depended on, and nothing in the graph makes it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingDependencyError(MissingKeyError, ValueError):
    """A task depends on a key that nothing in the graph makes."""


class BadKeyError(GraphError, TypeError):
    """Something that cannot be a key (it is not hashable) was asked for."""


class UnpicklableError(UserError, TypeError):
    """A task or its result cannot travel to another process; the message has the path to the culprit."""


class MustStayHere(UnpicklableError):
    """What was to be pickled means something in this process only (a lock): its task runs here, in every lane."""


class WorkerDied(HeadraceError, RuntimeError):
    """A task was given up because the workers that ran it kept dying, or because none could be started.

    Attributes:
        task: the task's key, as text.
        attempts: how many workers it took down, or were to be started in vain.
        reason: how the last one ended, for example ``"killed by SIGSEGV"`` or ``"exit code 3"``.
        rss_bytes: the most resident memory that is known of the last worker; 0 when not known.
    """

    def __init__(self, task: str, attempts: int, reason: str, rss_bytes: int = 0) -> None:
        self.task = task
        self.attempts = attempts
        self.reason = reason
        self.rss_bytes = rss_bytes
        if reason.startswith(NOT_STARTED):
            tried = f"in {attempts} attempt(s); the last one was {reason}"
            why = f"because no worker process could be started for it, {tried}"
            advice = "Run it with lane='threads', which needs none."
        else:
            memory = f", resident memory {rss_bytes / 2**20:.0f} MiB" if rss_bytes else ""
            why = f"after it took down {attempts} worker process(es); the last one was {reason}{memory}"
            advice = "Run it with lane='threads' or scheduler='sync' to see where it crashes."
        super().__init__(f"task {task} was given up {why}. {advice}")

    def __reduce__(self) -> tuple[type[WorkerDied], tuple[str, int, str, int]]:
        return WorkerDied, (self.task, self.attempts, self.reason, self.rss_bytes)


class StreamError(HeadraceError, RuntimeError):
    """A stream cannot be read: it was cancelled, or its beginning is gone and cannot be made again."""


class NoThreadError(HeadraceError, RuntimeError):
    """Tasks were to run in a thread, and this process may not start another one."""


class InternalError(HeadraceError):
    """An invariant of Headrace broke. This is a bug: please report it with the message."""

    def __str__(self) -> str:
        return f"{super().__str__()} (this is a bug of Headrace: please report it)"


def raised_in(error: BaseException) -> str:
    """The name of the module whose code raised it; empty if it has not been raised in Python."""
    traceback, module = error.__traceback__, ""
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module


class RemoteTraceback(Exception):
    """Carries the text of a traceback from a worker process, as the cause of the user's exception."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
