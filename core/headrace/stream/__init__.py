"""Streams: the value of a task that goes on producing while others read it.

    machine    who may go on, what is kept; pure          waits     who waits for whom; pure
    kept       the items that are there, and who may      source    makes them and waits for them: what blocks threads
               read them; never waits                     steps     takes generators of all kinds one step further
    handle     what tasks and callers get to see          awaited   what they see of it in an event loop
    resuming   when a producer is run again               gate      a task that is done when somebody says so

A task is a number here, which says who reads. Nothing in here knows jobs, lanes or the decision core.
"""
