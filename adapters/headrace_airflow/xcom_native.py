"""Which values stay in the database as stock Airflow would keep them. Pure.

============  ================================================================================================
verdict       means
============  ================================================================================================
``stock``     stock serializes it, and shall: it is small; or stock would change it (keys that are not text become
              text), and a task downstream may count on that; or it is a time, a decimal, a numpy scalar, or Airflow's
``store``     everything else, large plain data included
============  ================================================================================================

What databases refuse in JSON (NaN, infinity, NUL characters, lone surrogates), integers that 64 bits do not hold (stock
makes floats of some), times at the ends of the calendar (stock cannot bring them back) and names that stock reserves go
to the store, whatever their size. So does what stock turns out to refuse.
"""

from __future__ import annotations

import datetime
import decimal
import math
from typing import Any, Final, Literal

Verdict = Literal["stock", "store"]

_RESERVED: Final = frozenset({
    "__classname__", "__version__", "__data__", "__id__", "__cache__", "__type", "__source", "__var",
})  # fmt: skip
_COLLECTIONS: Final = frozenset({list, tuple, set, frozenset})
_NUMBER_BYTES: Final = 8
_MOST_BITS: Final = 63
_ENDS_OF_TIME: Final = (datetime.MINYEAR, datetime.MAXYEAR)
_DEEPEST: Final = 50
"""What is nested deeper goes to the store: stock recurses as well, and would end at the interpreter's limit."""

_STOCK_MODULES: Final = frozenset({"airflow", "datetime", "decimal", "pendulum", "zoneinfo"})


class _ForStore(Exception):
    """Seen enough: the value goes to the store."""


class _Walk:
    __slots__ = ("bent", "size_bytes")

    def __init__(self) -> None:
        self.size_bytes = 0
        self.bent = False
        """Stock would keep the value, but in a way of its own."""

    def visit(self, value: Any, depth: int) -> None:
        kind = type(value)
        if kind is str:
            self._text(value)
        elif value is None or kind is bool:
            self.size_bytes += _NUMBER_BYTES
        elif kind is int:
            if value.bit_length() > _MOST_BITS:
                raise _ForStore
            self.size_bytes += _NUMBER_BYTES
        elif kind is float:
            if not math.isfinite(value):
                raise _ForStore
            self.size_bytes += _NUMBER_BYTES
        elif depth >= _DEEPEST:
            raise _ForStore
        elif kind is dict:
            self._dict(value, depth)
        elif kind in _COLLECTIONS:
            for item in value:
                self.visit(item, depth + 1)
        else:
            self._other(value, kind)

    def _text(self, text: str) -> None:
        if "\0" in text:
            raise _ForStore
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise _ForStore from None
        self.size_bytes += len(text)

    def _dict(self, value: dict[Any, Any], depth: int) -> None:
        for key, item in value.items():
            if type(key) is str:
                if key in _RESERVED:
                    raise _ForStore
                self._text(key)
            elif key is None or type(key) in (bool, int, float):
                self.bent = True
            else:
                raise _ForStore
            self.visit(item, depth + 1)

    def _other(self, value: Any, kind: type) -> None:
        home = str(kind.__module__).partition(".")[0]
        if not (_is_number(value, kind) if home == "numpy" else home in _STOCK_MODULES and _is_ordinary(value)):
            raise _ForStore
        self.bent = True
        self.size_bytes += _NUMBER_BYTES


def _is_number(value: Any, kind: type) -> bool:
    """Whether something of numpy's is a scalar that stock knows."""
    if kind.__name__ == "ndarray" or not hasattr(value, "item") or getattr(value, "shape", None) != ():
        return False
    return value.dtype.kind in "biuf" and math.isfinite(value)


def _is_ordinary(value: Any) -> bool:
    """Whether stock can bring a time or a decimal back."""
    if isinstance(value, datetime.datetime):
        return value.year not in _ENDS_OF_TIME
    if isinstance(value, decimal.Decimal):
        return value.is_finite() and abs(value) < 1 << _MOST_BITS
    return True


def verdict(value: Any, inline_bytes: int) -> Verdict:
    """Where a value shall be kept.

    Args:
        value: any; it is looked at, never changed, and none of its own code runs.
        inline_bytes: about how long plain data may be to stay in the database.
    """
    walk = _Walk()
    try:
        walk.visit(value, 0)
    except _ForStore:
        return "store"
    return "stock" if walk.bent or walk.size_bytes <= inline_bytes else "store"
