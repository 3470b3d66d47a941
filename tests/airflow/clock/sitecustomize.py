"""Has ``time.time`` be ahead by what the file named in ``CLOCK_AHEAD`` says at the moment: eight bytes, seconds.

Python imports this at the start of each process that has this folder in ``PYTHONPATH``. What reads the clock through
``datetime`` does not notice.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

with open(os.environ["CLOCK_AHEAD"], "rb") as file:
    ahead = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
stock = time.time


def jumping() -> float:
    return stock() + float(struct.unpack("d", ahead)[0])


time.time = jumping
