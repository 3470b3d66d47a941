"""How a pickled value stands in one range of memory, or in one file. Pure.

    "HEADRXC1" | count (8 bytes) | size of each part (8 bytes each) | parts, each at a multiple of 64
    and behind it, in a file only:  footer (JSON) | length of the footer (4 bytes) | "HEADRXCF"

The first part is the pickle, the others are its buffers. The footer comes last so that a file begins as memory does,
and can be mapped just the same; and a file that was cut off has none.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Final

from headrace.store.segments import ALIGNMENT

_MAGIC: Final = b"HEADRXC1"
_END: Final = b"HEADRXCF"
_COUNT: Final = struct.Struct("<8sQ")
_FOOTER_LENGTH: Final = struct.Struct("<I8s")
TAIL_BYTES: Final = _FOOTER_LENGTH.size
MOST_FOOTER_BYTES: Final = 1 << 16


class BadImageError(ValueError):
    """These bytes are not an image, or not a whole one."""


def plan(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where parts of these sizes begin, and how long the whole image is."""
    end = table_bytes(len(sizes))
    offsets = []
    for size in sizes:
        end = -(-end // ALIGNMENT) * ALIGNMENT
        offsets.append(end)
        end += size
    return offsets, end


def table_bytes(count: int) -> int:
    """Length of the table that an image of so many parts begins with."""
    return _COUNT.size + 8 * count


def table(sizes: Sequence[int]) -> bytes:
    """What an image begins with."""
    return _COUNT.pack(_MAGIC, len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)


def split(image: memoryview) -> list[memoryview]:
    """The parts of an image.

    Raises:
        BadImageError: it is none, or parts reach past its end.
    """
    if image.nbytes < _COUNT.size:
        raise BadImageError(f"{image.nbytes} bytes are too few for a stored value")
    magic, count = _COUNT.unpack_from(image)
    if magic != _MAGIC or not 0 < count <= image.nbytes // 8:
        raise BadImageError("these bytes are not a stored value")
    sizes = struct.unpack_from(f"<{count}Q", image, _COUNT.size)
    offsets, length = plan(sizes)
    if length > image.nbytes:
        raise BadImageError(f"a stored value of {length} bytes has only {image.nbytes}")
    return [image[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]


def footer(info: dict[str, Any]) -> bytes:
    """What a file ends with."""
    text = json.dumps(info, separators=(",", ":")).encode()
    return text + _FOOTER_LENGTH.pack(len(text), _END)


def footer_bytes(tail: bytes) -> int:
    """From a file's last ``TAIL_BYTES``: how many bytes from its end the footer begins.

    Raises:
        BadImageError: the file has no footer.
    """
    if len(tail) != TAIL_BYTES:
        raise BadImageError("the file is too short")
    length, magic = _FOOTER_LENGTH.unpack(tail)
    if magic != _END or length > MOST_FOOTER_BYTES:
        raise BadImageError("the file is not complete")
    return int(length) + TAIL_BYTES


def read_footer(end: bytes) -> dict[str, Any]:
    """The footer, from as many bytes of the file's end as ``footer_bytes`` says.

    Raises:
        BadImageError: these bytes are none.
    """
    try:
        info = json.loads(end[:-TAIL_BYTES])
    except ValueError:
        info = None
    if not isinstance(info, dict):
        raise BadImageError("the footer is not a JSON object")
    return info
