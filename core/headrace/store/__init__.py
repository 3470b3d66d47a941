"""The object store: shared memory segments, pickling into them, and the ledger of who holds what.

``segments`` and ``kernel`` touch the operating system; ``ledger`` and ``ranges`` are pure; ``pickling`` (with
``arrays``, ``sizes`` and ``culprit``) turns values into bytes and buffers. Nothing in here imports numpy, pandas or
pyarrow by itself: a worker process must start quickly and stay small.
"""
