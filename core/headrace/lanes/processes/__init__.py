"""The processes lane. In the owner's process::

    lane         what the runtime calls; puts the others together
    io_thread    starts workers, hears them, notices their death       launcher   the exec of a worker
    sender       orders to frames                                      functions  which functions workers know
    receiver     messages to events                                    peer       a worker as the owner sees it
    publications what is in shared memory, and for whom                host       what the lane asks of the runtime

In a worker's process::

    worker       its two threads: one runs tasks, one listens          guard      how it dies with its owner
    holdings     the values it has                                     meter      CPU time of tasks
    shelf        the shared memory it writes and reads                 surroundings path, directory, environment

Between them: ``wire`` (codes, records, the channel), ``parcels`` (how values travel), ``failures`` (exceptions),
``reloads`` (modules that the program loads again),
``warned`` and ``logged`` (what tasks warn of and log).
"""
