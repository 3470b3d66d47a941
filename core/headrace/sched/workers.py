"""What worker processes report: starts, results, failures, publications, revocations, deaths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.away import LATE_S, dequeue, note_room, stop
from headrace.sched.heaps import make_ready
from headrace.sched.jobs import fail
from headrace.sched.state import AWAY, DONE, FAILED, HERE_QUEUED, WAITING, Task, Worker
from headrace.sched.values import arrived, done, gone_from, lose, needed, unplace

if TYPE_CHECKING:
    from headrace.sched.machine import Machine


def worker_started(m: Machine, event: e.WorkerStarted) -> None:
    worker = m.workers.get(event.worker)
    if worker is None or worker.up:
        return
    worker.up = True
    if not worker.stopping:
        m.up += 1
        for job in m.jobs.values():
            if job.began_s is None:
                job.judged_from(m.now)
        m.failed_starts = 0
        worker.idle_since = m.now
        asked, m.asked = m.asked, {}
        for other in (worker, *asked):
            note_room(m, other)


def worker_ran(m: Machine, event: e.WorkerRan) -> None:
    worker = m.workers.get(event.worker)
    if worker is None:
        return
    tasks, arrived_now = m.tasks, event.arrived
    if len(arrived_now) > 4 and not isinstance(arrived_now, (set, frozenset)):
        arrived_now = set(arrived_now)
    orphans = []
    for span in event.spans:
        number = span.task
        task = dequeue(m, worker, number)
        if task is None or task.state != AWAY or number not in tasks:
            orphans.append(number)
            continue
        task.family.ran_away(span, worker.id, m.inline_below_s)
        task.size = span.size_bytes
        if number in arrived_now:
            task.here = True
        task.workers = worker.alone
        worker.holds[task] = task.job.spread[task] = None
        done(m, task)
    m.regret_s = 0.0
    if orphans:
        m.out.append(c.Release(orphans, (worker.id,)))
    _progressed(m, worker)


def _progressed(m: Machine, worker: Worker) -> None:
    if worker in m.asked:
        del m.asked[worker]
    worker.heard = m.now
    note_room(m, worker)


def value_published(m: Machine, event: e.ValuePublished) -> None:
    waiters = m.fetching.pop(event.task, {})
    task = m.tasks.get(event.task)
    if task is None or task.state == FAILED:
        m.out.append(c.Release([event.task], (event.worker,)))
        return
    if task.here or task.state != DONE:
        return
    if not task.workers:
        # Released before it was published: nothing that was said after that asked for it.
        m.out.append(c.Release([event.task], (event.worker,)))
        return
    task.here = True
    for waiter in waiters:
        m.fetches[waiter] -= 1
        if m.fetches[waiter] == 0:
            del m.fetches[waiter]
            make_ready(m, waiter)
    arrived(m, task)


def tasks_revoked(m: Machine, event: e.TasksRevoked) -> None:
    worker = m.workers.get(event.worker)
    if worker is None:
        return
    worker.revoking = False
    for number in event.tasks:
        task = dequeue(m, worker, number)
        if task is not None and task.state == AWAY and number in m.tasks:
            unplace(m, task)
    note_room(m, worker)


def task_raised(m: Machine, event: e.TaskRaised) -> None:
    _leave_queue(m, event.task, event.place)
    task = m.tasks.get(event.task)
    if task is not None:
        if task.state == DONE and not task.here:
            _take_from_workers(m, task)
        if task.state in (WAITING, HERE_QUEUED, AWAY):
            fail(m, task)


def _leave_queue(m: Machine, number: int, place: int) -> None:
    worker = m.workers.get(place)
    if worker is None or number not in worker.queue:
        # It failed in this process when it was to be sent; seldom, and then nothing is said about where to.
        worker = next((w for w in m.workers.values() if number in w.queue), None)
    if worker is not None:
        dequeue(m, worker, number)
        _progressed(m, worker)


def task_unpicklable(m: Machine, event: e.TaskUnpicklable) -> None:
    _leave_queue(m, event.task, event.worker)
    task = m.tasks.get(event.task)
    if task is None or task.state not in (AWAY, DONE) or (task.state == DONE and (task.here or not needed(task))):
        return
    if task.job.lane == "processes" and not event.must_stay:
        if task.state == DONE:
            _take_from_workers(m, task)
        fail(m, task)
        return
    task.pinned = True
    if not event.must_stay:
        task.family.movable = False
    if task.state == DONE:
        for number in tuple(task.workers or ()):
            gone_from(task, m.workers[number])
        lose(m, [task])
    else:
        unplace(m, task)


def _take_from_workers(m: Machine, task: Task) -> None:
    """A value that cannot leave its worker is as good as none."""
    for number in tuple(task.workers or ()):
        gone_from(task, m.workers[number])
    task.state = WAITING
    task.family.pending += 1


def worker_died(m: Machine, event: e.WorkerDied) -> None:
    worker = m.workers.pop(event.worker, None)
    if worker is None:
        return
    if not worker.stopping:
        m.live -= 1
        m.up -= worker.up
        if not worker.up and not event.expected:
            m.failed_starts += 1
    culprit = None if event.expected else _culprit(m, worker, event.running)
    worker.stopping = True
    m.asked.pop(worker, None)
    note_room(m, worker)
    _scatter(m, worker)
    if culprit is not None:
        deaths = m.deaths[culprit.id] = m.deaths.get(culprit.id, 0) + 1
        if deaths >= m.max_deaths:
            fail(m, culprit, deaths)


def _culprit(m: Machine, worker: Worker, running: int | None) -> Task | None:
    """The task to blame: the one it ran, or pickled the value of; if nothing is known, the one it must have come to."""
    task = None
    if running is None:
        task = next((task for task, _ in worker.queue.values()), None)
    elif running in worker.queue:
        task = worker.queue[running][0]
    elif (made := m.tasks.get(running)) is not None and made in worker.holds and not made.here:
        task = made
    return task if task is not None and task.id in m.tasks and task.state in (AWAY, DONE) else None


def _scatter(m: Machine, worker: Worker) -> None:
    """What a dead worker had queued goes elsewhere, and what only it held is made again."""
    queued = []
    for number in list(worker.queue):
        task = dequeue(m, worker, number)
        if task is not None and task.state == AWAY and number in m.tasks:
            task.state = WAITING
            queued.append(task)
    held = list(worker.holds)
    for task in held:
        gone_from(task, worker)
    lose(m, [task for task in held if task.state == DONE and not task.here and not task.workers and needed(task)])
    for task in queued:
        if task.state == WAITING and task.waiting == 0:
            make_ready(m, task)


def workers_idled(m: Machine, event: e.WorkersIdled) -> None:
    for worker in list(m.workers.values()):
        if not worker.up or worker.stopping:
            continue
        if worker.queue:
            if len(worker.queue) > 1 and worker not in m.asked and m.now - worker.heard >= LATE_S:
                m.victims[worker] = None
        elif not worker.holds and m.now - worker.idle_since >= m.idle_timeout_s:
            stop(m, worker, kill=False)
