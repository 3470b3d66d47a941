"""The node's object store: values of XComs in anonymous memory, a durable copy of each written behind.

::

    task that returns a value        service (one a node)             helper (I/O process)
    pickle ── image ──► memfd ──fd──► Ledger: who needs what ──fd──► durable copy: <url>/<dag>/<run>/<task>/…
    task that reads it                 │          ▲                        │
    private map ◄────────fd────────────┘          └───────fd── restored ◄──┘

``ledger``    pure: what is kept, for how long, what may go; no I/O, no clock
``image``     pure: how the parts of a value stand in one range of memory or in one file
``settings``  what can be set, as plain data
``storage``   files behind an fsspec URL; used in helpers, and in a task when there is no service
``segments``  anonymous memory, used again where that is provably safe
``contents``  what is held of each object: carries out what the ledger decides
``service``, ``lane``, ``helper``  the processes;  ``client``  what tasks call;  ``home``  where they meet

Nothing in here imports Airflow: a service starts in a fraction of a second and stays small. The service never unpickles
anything, and never waits for a disk.
"""
