"""Where ready tasks run. Called after every event; pure, like the machine whose state it works on.

What may run where is prepared by ``heaps``; the rules of slots stand in ``here``, those of workers in ``away``. Slots
go first: nothing is closer than this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.sched.away import launch, place_away, steal
from headrace.sched.heaps import head
from headrace.sched.here import place_here
from headrace.sched.jobs import fail
from headrace.sched.stages import lend
from headrace.sched.state import Job

if TYPE_CHECKING:
    from headrace.sched.machine import Machine


def place(m: Machine) -> None:
    """Places whatever can be placed now."""
    m.look_again = True
    while m.look_again:
        m.look_again = False
        for job in tuple(m.hungry):
            _place_of(m, job)
            if not job.hungry:
                m.hungry.pop(job, None)
    if m.victims and (m.idle_workers or (m.autos and not m.busy)):
        steal(m)


def _place_of(m: Machine, job: Job) -> None:
    if job.lane == "processes":
        _place_forced(m, job)
        return
    again = True
    while again:
        if m.pumping:
            lend(m, job)
        place_here(m, job)
        again = m.moved = False
        if job.away:
            launch(m, job)
            again = place_away(m, job)  # workers have more to do now: what would wait for them may stay
        again |= m.moved  # to another heap, which has been looked at already


def _place_forced(m: Machine, job: Job) -> None:
    """Lane ``processes``: where a task belongs never changes, so there is nothing to tidy."""
    if m.pumping:
        lend(m, job)
    if job.free:
        place_here(m, job)
    if job.away:
        launch(m, job)
        if m.roomy:
            place_away(m, job)
        if m.live == 0:
            _give_up(m, job)


def _give_up(m: Machine, job: Job) -> None:
    """Tasks that may run nowhere but at workers fail when no worker can be started."""
    while m.failed_starts >= m.max_deaths:
        task = head(m, job.away)
        if task is None:
            return
        fail(m, task, m.failed_starts)
        if not job.futures:
            return
