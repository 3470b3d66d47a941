"""Stages in processes of their own: a stage that would fight with its producer for the GIL runs elsewhere.

In the owner's process::

    pool       the processes of a runtime, busy and idle       feeder    sends the items of its inputs to one
    process    one of them, as the owner sees it               exchange  large items in shared memory, for all of them

In a stage process::

    helper     its main program, three threads                 memory    large items in shared memory

Between them: ``frames``. None of it knows jobs, slots or the decision core: to those the stage is a thread that waits.
"""
