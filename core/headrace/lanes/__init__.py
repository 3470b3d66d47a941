"""Where tasks run: ``slots`` of this process (the lanes inline and threads) and worker processes (``processes``). A
stage that has a slot here may run in a process of its own (``stages``).

Lanes execute commands of the decision core and report events to it. They decide nothing, and know no jobs: what they
need of a task they ask whoever runs them.
"""
