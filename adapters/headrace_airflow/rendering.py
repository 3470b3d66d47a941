"""Rendered template fields of large values, without making text of the whole of them first.

Stock turns a value into text and then cuts it to ``[core] max_templated_field_length``: an argument of 1 GB costs many
times that. Here a value is cut to what can be seen of it before; what is short enough is not touched, so the result is
stock's own.

What a task gets from others with HeadraceXCom may also be what stock cannot show, or cannot send: lists in themselves,
integers of more than 64 bits, objects whose text is an error. These fields are for show, so they fail no task.
"""

from __future__ import annotations

import functools
import heapq
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

_MARGIN: Final = 1 << 16
"""A secret that begins in the part that is seen has to be there whole, or it would not be masked."""
_DEEPEST: Final = 100
"""The messages to the supervisor have no more than 255 levels, and stock's walk needs its frames."""
_MOST_BITS: Final = 63
_MOST_BITS_AS_TEXT: Final = 10_000
"""Python refuses to make text of integers that are a little larger."""


def install() -> None:
    """In a task, whatever executor runs it, before it shows what it has read from the store. May be called again."""
    task_runner: Any = sys.modules.get("airflow.sdk.execution_time.task_runner")
    stock = getattr(task_runner, "_serialize_template_field", None)
    if stock is not None and not hasattr(stock, "__wrapped__"):
        task_runner._serialize_template_field = bounded(stock)


def bounded(stock: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Wraps ``_serialize_template_field``."""

    @functools.wraps(stock)
    def serialize(template_field: Any, name: str) -> Any:
        from airflow.sdk.configuration import conf

        length = conf.getint("core", "max_templated_field_length") + _MARGIN
        try:
            return stock(head(template_field, length), name)
        except Exception as error:  # of a value's own code
            return f"<cannot be shown: {type(error).__name__}>"

    return serialize


def head(value: Any, length: int) -> Any:
    """A value whose text begins as that of ``value`` does, for ``length`` characters at least.

    Only plain containers, text and bytes are cut: what other objects show of themselves is their own affair. What is
    too deep, or cannot be sent as it is, becomes text.
    """
    return _Head(length).of(value)


class _Head:
    def __init__(self, length: int) -> None:
        self._left = length
        self._depth = 0

    def of(self, value: Any) -> Any:
        kind = type(value)
        if kind in (str, bytes, bytearray):
            kept = value if len(value) <= self._left else value[: self._left + 1]
            self._left -= len(kept)
            return _sendable(kept)
        if kind in (list, tuple, dict, set, frozenset):
            return self._inside(value, kind)
        self._left -= 1
        return _sendable(value)

    def _inside(self, value: Any, kind: Any) -> Any:
        if self._depth == _DEEPEST:
            self._left -= 1
            return "..."
        self._depth += 1
        try:
            if kind is dict:
                return dict(self._pairs(value))
            return kind(self._items(value) if kind in (list, tuple) else map(_sendable, _least(value, self._left)))
        finally:
            self._depth -= 1

    def _pairs(self, mapping: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
        for key in sorted(_least(mapping, max(self._left, 0)), key=str):
            self._left -= len(key) if isinstance(key, str) else 1
            yield _sendable(key), self.of(mapping[key])
            if self._left < 0:
                return

    def _items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            yield self.of(item)
            self._left -= 1
            if self._left < 0:
                return


def _sendable(value: Any) -> Any:
    """A value, or a text in its place where it cannot be sent, or would be sent whole."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="backslashreplace").decode()
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        bits = value.bit_length()
        return str(value) if bits <= _MOST_BITS_AS_TEXT else f"<integer of {bits} bits>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if str(type(value).__module__).startswith("polars."):  # stock asks such frames to serialize themselves
        return str(value)
    return value


def _least(items: Collection[Any], count: int) -> Collection[Any]:
    """Stock sorts by text; so do we where something is left out."""
    if len(items) <= count:
        return items
    return heapq.nsmallest(count + 1, items, key=lambda item: (type(item).__name__, str(item)))
