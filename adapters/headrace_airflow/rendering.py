"""Rendered template fields of large values, without making text of the whole of them first.

Stock turns a value into text and then cuts it to ``[core] max_templated_field_length``: an argument of 1 GB costs many
times that. Here a value is cut to what can be seen of it before; what is short enough is not touched, so the result is
stock's own.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

_MARGIN: Final = 1 << 16
"""A secret that begins in the part that is seen has to be there whole, or it would not be masked."""


def bounded(stock: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Wraps ``_serialize_template_field``."""

    @functools.wraps(stock)
    def serialize(template_field: Any, name: str) -> Any:
        from airflow.sdk.configuration import conf

        return stock(head(template_field, conf.getint("core", "max_templated_field_length") + _MARGIN), name)

    return serialize


def head(value: Any, length: int) -> Any:
    """A value whose text begins as that of ``value`` does, for ``length`` characters at least.

    Only plain containers, text and bytes are cut: what other objects show of themselves is their own affair.
    """
    return _Head(length).of(value)


class _Head:
    def __init__(self, length: int) -> None:
        self._left = length

    def of(self, value: Any) -> Any:
        kind = type(value)
        if kind in (str, bytes, bytearray):
            kept = value if len(value) <= self._left else value[: self._left + 1]
            self._left -= len(kept)
            return kept
        if kind in (list, tuple):
            return kind(self._items(value))
        if kind is dict:
            return dict(self._pairs(value))
        if kind in (set, frozenset):
            return kind(_least(value, self._left))
        self._left -= 1
        return value

    def _pairs(self, mapping: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
        for key in sorted(_least(mapping, max(self._left, 0)), key=str):
            self._left -= len(key) if isinstance(key, str) else 1
            yield key, self.of(mapping[key])
            if self._left < 0:
                return

    def _items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            yield self.of(item)
            self._left -= 1
            if self._left < 0:
                return


def _least(items: Collection[Any], count: int) -> Collection[Any]:
    """Stock sorts by text; so do we where something is left out."""
    if len(items) <= count:
        return items
    return heapq.nsmallest(count + 1, items, key=lambda item: (type(item).__name__, str(item)))
