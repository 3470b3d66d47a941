"""How slices of Arrow data travel: pyarrow pickles all of the buffers that a slice looks into, however small it is.

Tables, record batches and chunked arrays consist of arrays, so these are the only ones to look after. This module
imports pyarrow only where an array proves that it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

SPARED_FROM: Final = 64 * 1024
"""Bytes: what does not spare this much, or half of the whole, is not worth its copy."""


def reducers(lib: Any) -> dict[type, Callable[[Any], Any]]:
    """By type: each kind of array has one of its own."""
    found: list[type] = [lib.Array]
    for kind in found:
        found += kind.__subclasses__()
    return dict.fromkeys(found, reduce_slice)


def reduce_slice(array: Any) -> Any:
    """The ``__reduce__`` of arrays: of a small part of its buffers only the part travels."""
    whole_bytes = array.get_total_buffer_size()
    if whole_bytes >= SPARED_FROM:
        part_bytes = array.nbytes
        if whole_bytes - part_bytes >= max(SPARED_FROM, whole_bytes // 2):
            array = sys.modules["pyarrow"].concat_arrays([array])
    return array.__reduce__()
