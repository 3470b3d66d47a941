"""How an exception travels from a worker to the owner, whatever it is made of.

A *failure* is a plain tuple, safe to marshal: the pickled exception (``None`` if that did not work), its type's name,
its text, the names of its built-in base classes (nearest first), the traceback as text, why it was not pickled.

The worker unpickles what it has pickled before it sends it: an exception whose unpickling crashes shall take down the
worker, not the owner. One whose constructor wants more than its ``args``, or that holds what cannot be pickled, is made
anew without its constructor, so that the caller's ``except`` clauses fit.
"""

from __future__ import annotations

import builtins
import copyreg
from typing import Any, TypeAlias

from headrace.errors import MustStayHere, RemoteTraceback, UnpicklableError
from headrace.lanes.processes.parcels import open_whole, whole
from headrace.store.pickling import pack

_Pickled: TypeAlias = tuple[bytes, list[bytes]]
_copyreg: Any = copyreg
Failure: TypeAlias = tuple["_Pickled | None", str, str, list[str], str, str]


def describe_failure(error: BaseException, skip_frames: int = 0) -> Failure:
    """Makes a failure of an exception that was just caught.

    Args:
        error: with its traceback.
        skip_frames: how many outermost frames belong to Headrace and say nothing to the user.
    """
    kind = type(error)
    module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
    name = module + kind.__qualname__
    bases = [base.__name__ for base in kind.__mro__ if base.__module__ == "builtins" and base is not object]
    text = format_traceback(error, skip_frames)
    pickled, reason = _pickle(error)
    if pickled is None:
        pickled, _ = _pickle(_Anew(error))
        if pickled is not None:
            text += f"(The exception itself could not be brought here: {reason}. It was made anew from what could.)\n"
    return pickled, name, text_of(error), bases, text, reason


def _pickle(error: BaseException | _Anew) -> tuple[_Pickled | None, str]:
    """What unpickles to the exception; or why there is no such thing."""
    try:
        packed = pack(error, "exception")
        pickled = (packed.data, [bytes(buffer) for buffer in packed.buffers])
        _load(pickled)
        return pickled, ""
    except BaseException as problem:  # the exception's own __reduce__ or __init__, which may do anything
        return None, _say(problem)


class _Anew:
    """Becomes, when it is unpickled, an exception with the class, the args and the attributes of another one, as far
    as these can travel."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        error = self._error
        slots = [name for name in _copyreg._slotnames(type(error)) if hasattr(error, name)]
        attributes = vars(error) | {name: getattr(error, name) for name in slots}
        travelling = {name: value for name, value in attributes.items() if _travels(value)}
        return _make_anew, (type(error), tuple(map(_travelling, error.args)), travelling)


def _travelling(arg: Any) -> Any:
    """What is sent of an argument: itself, or what can be; an exception group has exceptions in a list."""
    if _travels(arg):
        return arg
    if isinstance(arg, BaseException):
        return _Anew(arg)
    if type(arg) in (list, tuple):
        return [_travelling(item) for item in arg]
    return text_of(arg)


def _make_anew(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    # Only the constructor of the built-in base class is known to take args; some keep them elsewhere as well.
    base: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    error: BaseException = base.__new__(kind, *args)
    base.__init__(error, *args)
    for name in attributes.keys() & _copyreg._slotnames(kind):
        BaseException.__setattr__(error, name, attributes.pop(name))
    error.__dict__.update(attributes)
    return error


def _travels(value: Any) -> bool:
    try:
        open_whole(whole(pack(value)))
    except BaseException:  # __reduce__ of the value may do anything
        return False
    return True


def revive_failure(failure: Failure) -> BaseException:
    """Gives the exception itself, or a substitute that says what it was; its cause is the remote traceback."""
    pickled, name, text, bases, trace, reason = failure
    error: BaseException | None = None
    if pickled is not None:
        try:
            error = _load(pickled)
        except BaseException as problem:  # its class is not there, or its __init__, which may do anything, fails here
            reason = _say(problem)
    if error is None:
        error = _substitute(bases, f"{name}: {text} (the exception itself could not be brought here: {reason})")
    _set_cause(error, RemoteTraceback(trace))
    return error


def explain_unpicklable(message: str, task: str, cause: BaseException | None, stays: bool) -> UnpicklableError:
    """The error that users see.

    Args:
        message: the path to the culprit, and the reason.
        task: the name of the task that holds it, or returns it.
        cause: of the error.
        stays: the culprit may only be used in its own process.
    """
    subject, trouble = ("The result of task", "leave") if message.startswith("result") else ("Task", "go to")
    error = (MustStayHere if stays else UnpicklableError)(
        f"{message}. {subject} {task} cannot {trouble} a worker process with that. Use lane='auto' or lane='threads', "
        "which run it in this process, or have the task make the object itself and return what can be pickled."
    )
    error.__cause__ = cause
    return error


def name_result(error: BaseException, task: str) -> None:
    """Gives what the unpickling of a result has raised in the owner a cause that names the task: its frames do not.

    Its own cause and context become those of that cause, so that they are still shown.
    """
    named = UnpicklableError(
        f"The result of task {task} has come from a worker process and cannot be read in this one. Use lane='threads', "
        "which runs it in this process, or have the task return what can be unpickled."
    )
    named.__cause__, named.__context__ = error.__cause__, error.__context__
    named.__suppress_context__ = error.__suppress_context__
    _set_cause(error, named)


def must_stay(error: BaseException | None) -> bool:
    """Whether something could not be pickled because it may only be used in its own process."""
    while error is not None and not isinstance(error, MustStayHere):
        error = error.__cause__
    return error is not None


def format_traceback(error: BaseException, skip_frames: int = 0) -> str:
    """The traceback as Python prints it, causes included."""
    import traceback

    frame = error.__traceback__
    while skip_frames and frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
        skip_frames -= 1
    try:
        return "".join(traceback.format_exception(type(error), error, frame))
    except Exception as problem:  # formatting runs the user's __str__ and looks into the user's source files
        return f"{type(error).__name__} (its traceback could not be formatted: {_say(problem)})\n"


def _set_cause(error: BaseException, cause: BaseException) -> None:
    BaseException.__setattr__(error, "__cause__", cause)  # its own, as that of a frozen dataclass, may refuse


def _load(pickled: _Pickled) -> BaseException:
    error = open_whole(pickled)
    if not isinstance(error, BaseException):
        raise TypeError(f"it became a {type(error).__name__} when unpickled")
    return error


def _substitute(bases: list[str], message: str) -> BaseException:
    """The nearest built-in base class that takes one text, so that the caller's ``except`` clauses still fit."""
    for name in bases:
        kind: Any = getattr(builtins, name, None)
        try:
            error = kind(message)
        except Exception:  # it wants other arguments, as UnicodeDecodeError does, or is none of Python's
            continue
        if isinstance(error, BaseException):
            return error
    return RuntimeError(message)


def text_of(obj: object) -> str:
    """Its text, which can be marshalled: that of a user's ``__str__`` may be of a subclass, which cannot."""
    try:
        return "".join([str(obj)])
    except BaseException:  # the user's __str__, which may raise anything
        return "<its text cannot be made>"


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}"
