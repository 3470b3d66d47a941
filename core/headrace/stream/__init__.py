"""Streams: the value of a task that goes on producing while others read it.

``machine`` (who may go on, what is kept) and ``waits`` (who waits for whom) are pure. ``source`` holds the items and
blocks threads, ``handle`` is what tasks and callers get to see, ``awaited`` what they see of it in an event loop,
``steps`` takes generators of all kinds one step further. Nothing in here knows tasks, jobs or lanes.
"""
