"""What runs in the children, by a name that does not bring Headrace with it.

Any import of ``headrace_dask.bench`` begins with that of ``headrace_dask``. Stock schedulers' processes shall know
nothing of that, and neither shall their workers, which import a task's module to unpickle the task. So this folder's
parent is on the path of every child, whichever its scheduler, and there ``headrace_bench.tasks`` is the file
``headrace_dask/bench/tasks.py``; likewise ``child``, ``digest``, ``schedulers`` and ``workloads``. They import one
another relatively, hence under either name. The driver uses ``headrace_dask.bench``.
"""

from os.path import abspath, dirname

__path__ = [dirname(dirname(dirname(abspath(__file__))))]
