"""``headrace bench``: the same dask graphs on the stock schedulers and on Headrace, side by side.

::

    cli ─▶ runner (the driver) ──socketpair, JSON lines──▶ child, one process a scheduler
             │   interleaves repeats A B C A B C ...          builds the workload, computes it, digests the result
             │   kills what exceeds its bound
             ├─▶ memory: of the child's whole process tree, in runs that are not timed
             └─▶ bounds, report, chart

What is timed is what a user waits for: ``dask.compute(collection, scheduler=...)`` with dask's own optimisation in it,
or ``get(dsk, keys)`` for a raw graph. Building the collection is not timed. Every repeat builds it anew, so nothing
that dask caches on a collection favours a later repeat. This package knows stock dask and the public face of Headrace
only, besides words for machines and for the ends of processes (``observe.conditions``, ``obituary``): if it reached
into what runs tasks, the comparison would not be one between schedulers. What runs in the children goes by the name
``headrace_bench`` there (``apart``), so that those of stock schedulers import nothing of Headrace.
"""
