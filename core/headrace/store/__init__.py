"""The object store: shared memory segments, pickling into them, and the ledger of who holds what.

    segments   memory of one process that others map      kernel   the calls into libc that this takes
    ledger     who reads what; pure                       ranges   which bytes are free; pure
    pickling   values to bytes and buffers, and back      sizes    how large a value is, without pickling it

Of ``pickling``: ``cloud`` for what must travel by value, ``arrays`` and ``arrow`` for what numpy and pyarrow would
copy, ``nans`` for what is asked for by identity, ``hashes`` and ``unfinished`` for what must not travel, ``culprit``
for the error. ``schedstat`` has nothing to do with values: it is what the kernel knows of a thread's time.

Nothing in here imports numpy, pandas or pyarrow by itself: a worker process must start quickly and stay small.
"""
