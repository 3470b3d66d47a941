"""The shell of the decision core, in parts: what carries out commands and reports events in the owner's process.

    at_once     graphs of quick tasks, which need no scheduling
    jobs        the work and the values of each open job; ids; what a caller holds and sees (``Stored``, ``Observer``)
    futures     what ``submit`` gives out, and the job that all of them belong to
    callbacks   the thread in which the callbacks of futures are called
    dropped     what finalizers and destructors have to say
    telling     what those who watch a job hear of a batch
    threads     the threads that serve slots
    stages      the streams that tasks make: their threads, their end, circles of waits
    moving      which stages run in processes of their own
    attempts    one stage from its start to its end, over deaths of its process
    pipeline    pipelines that stay, for requests
    processes   the processes lane, from the first launch to the end
    host        what that lane asks for and reports
    imports     what a new worker imports at once
    interrupts  Ctrl-C waits while state is being changed

Nothing here decides where or when a task runs (``sched`` does; to it, a stage that moves is still in its thread), and
nothing here knows the machine: the parts get a function ``post`` for their events. ``headrace.engine`` puts them
together.
"""
