"""What tasks log in workers, as if a thread of the owner had logged it.

::

    owner: levels of all loggers ── states, once a job ──► worker: they decide what is worth a record
    owner: its handlers, in the caller's thread ◄── say, hear ── worker: what reaches the root logger

So handlers of a program, and pytest's ``caplog``, see what they would see of tasks on threads. A worker imports nothing
for it before somebody there imports ``logging``.
"""

from __future__ import annotations

import logging
import marshal
import traceback
from typing import Any, Final

from headrace import companions

_FIELDS: Final = (
    *("name", "levelno", "levelname", "pathname", "filename", "module", "lineno", "funcName", "created", "msecs"),
    *("relativeCreated", "thread", "threadName", "process", "processName", "exc_text", "stack_info"),
)
"""Of a record, what is plain. The message comes formatted, arguments stay behind: they may be anything."""


def _state() -> bytes:
    root = logging.root
    levels = {
        _plain(name): int(logger.level)
        for name, logger in list(root.manager.loggerDict.items())
        if isinstance(logger, logging.Logger) and logger.level
    }
    return marshal.dumps((int(root.manager.disable), int(root.level), levels))


def _plain(value: Any) -> Any:
    """Numbers and strings without a class of their own, such as members of an ``IntEnum``: marshal refuses these."""
    if isinstance(value, int):
        return int(value)
    return str.__str__(value) if isinstance(value, str) else value


_levels: dict[str, int] = {}
"""In a worker: what it was told last."""


def _apply(state: bytes) -> None:
    disabled_up_to, root_level, levels = marshal.loads(state)
    logging.disable(disabled_up_to)
    logging.root.setLevel(root_level)
    for name in _levels.keys() - levels.keys():
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    _levels.clear()
    _levels.update(levels)


class _Reporter(logging.Handler):
    """The root logger's, in a worker."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields: dict[str, Any] = {name: _plain(getattr(record, name, None)) for name in _FIELDS}
            fields["msg"] = _plain(record.getMessage())
            if record.exc_info and not record.exc_text:
                fields["exc_text"] = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
            said = marshal.dumps(fields)
        except Exception:  # as handlers of the standard library do: a bad format must not fail the task
            self.handleError(record)
            return
        last = logging.lastResort
        if not companions.say("logging", said) and last is not None and record.levelno >= last.level:
            last.handle(record)


def _hear(said: bytes) -> None:
    record = logging.makeLogRecord(marshal.loads(said))
    logging.getLogger(record.name).handle(record)


companions.share("logging", _state, _apply, _hear)
if companions.in_worker:
    logging.root.addHandler(_Reporter())
else:
    companions.accompany("logging", __name__)
