"""A world for the decision core to rule: fake slots and fake workers that obey its commands, one small step at a time.

Everything that takes time in reality is a step of its own that somebody chooses: a slot begins a task, ends it or finds
that it is a stage, reports; a worker hears an order, runs a task, its message arrives, it dies. So any interleaving
that threads and sockets could produce can be played, by Hypothesis or by a seeded random walk, without a thread or a
socket.

Values are modelled: a task may only run if its inputs really are where the command said, and what it makes is a number
that depends on all its inputs, so a finished job can be compared with direct evaluation, and at the end nothing may be
left.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial

from fake_shell import PROFILES, FakeShell, FakeSlot, FakeStage, FakeWorker, combine

from headrace.sched import commands as c
from headrace.sched import events as e
from headrace.sched.machine import FUTURES

Action = tuple[str, Callable[[], None]]


class World(FakeShell):
    """The machine, the shell that obeys it, and what may happen next. For the arguments see :class:`FakeShell`."""

    def running_slots(self) -> list[FakeSlot]:
        """Those whose task might call compute itself now."""
        found = (slot for slot in self.slots.values() if slot.current is not None and not self._is_waiting(slot))
        return [slot for slot in found if slot.current is not None and self._is_known(slot.current)]

    # ---- what may happen next

    def actions(self) -> list[Action]:
        """Everything that may happen now, in a fixed order. Empty only if nothing is under way."""
        found: list[Action] = []
        for slot in list(self.slots.values()):
            found += self._slot_actions(slot)
        for stage in self.stages:
            found += self._stage_actions(stage)
        for worker in list(self.workers.values()):
            found += self._worker_actions(worker)
        for number in list(self.jobs):
            if number in self.finished or number in self.failed:
                found.append(("collect", partial(self._collect, self.jobs[number])))
        return found

    def troubles(self) -> list[Action]:
        """What may go wrong now."""
        found: list[Action] = []
        for slot in self.slots.values():
            if slot.current is not None and not self._is_waiting(slot) and self._is_known(slot.current):
                found.append(("raise here", partial(self._raise_here, slot)))
        for worker in self.workers.values():
            found.append(("die", partial(self.die, worker)))
            if worker.current is not None and self._is_known(worker.current):
                found.append(("raise away", partial(self._raise_away, worker, e.TaskRaised)))
                found.append(("unpicklable", partial(self._raise_away, worker, e.TaskUnpicklable)))
            if worker.inbox and isinstance(worker.inbox[0], c.Publish):
                found.append(("unpublishable", partial(self._refuse, worker)))
            if worker.inbox and isinstance(worker.inbox[0], c.RunAt):
                found.append(("unsendable", partial(self._unsendable, worker)))
        return found

    def _slot_actions(self, slot: FakeSlot) -> list[Action]:
        if slot.stage is not None:
            return []
        if not slot.busy or self._is_waiting(slot):
            return [("stall", partial(self._stall, slot))] if slot.busy and not slot.stalled else []
        if slot.current is not None:
            found: list[Action] = [("end", partial(self._end_task, slot))]
            if not slot.stalled:
                found.append(("stall", partial(self._stall, slot)))
            if self.streams and self._is_known(slot.current):
                found.append(("become a stage", partial(self._become_stage, slot)))
            return found
        found = [("report", partial(self._report, slot))] if slot.spans or not slot.pending or slot.stalled else []
        if slot.pending:
            found.append(("begin", partial(self._begin, slot)))
        return found

    def _begin(self, slot: FakeSlot) -> None:
        slot.current = slot.pending.popleft()
        if self._is_known(slot.current):
            for dep in self.deps_of(slot.current):
                assert dep in self.here or dep in self.published, f"task {slot.current} runs here without {dep}"

    def _end_task(self, slot: FakeSlot) -> None:
        task, slot.current = slot.current, None
        assert task is not None
        if not self._is_known(task):
            return
        here, published = self.here, self.published
        here[task] = self._compute(task, lambda dep: here[dep] if dep in here else published[dep][0])
        slot.spans.append(self._span(task, slot.alone))

    def _become_stage(self, slot: FakeSlot) -> None:
        """The task at hand has returned a generator; a caller gives it to another thread."""
        task, slot.current = slot.current, None
        assert task is not None
        stays = slot.number > 0
        stage = FakeStage(task, slot if stays else None)
        self.stages.append(stage)
        event = e.StageBegan(slot.number, task, slot.spans, list(slot.pending), stays)
        slot.spans, slot.pending = [], deque()
        if stays:
            slot.stage = stage
        else:
            slot.busy = slot.stalled = False
        self.post(event)

    def _stage_actions(self, stage: FakeStage) -> list[Action]:
        found: list[Action] = [("go on", partial(self._step, stage))]
        if stage.slot is not None and not stage.slot.blocked:
            found.append(("wait in a stage", partial(self._block, stage.slot)))
        return found

    def _step(self, stage: FakeStage) -> None:
        task, slot = stage.task, stage.slot
        if not stage.opened:
            stage.opened = True
            if self._is_known(task):
                self.here[task] = self._expected(task)
            self.post(e.StreamOpened(task))
            return
        self.stages.remove(stage)
        if slot is not None:
            slot.stage, slot.busy, slot.stalled = None, False, False
            if slot.blocked:
                del self.slots[slot.number]
        self.post(e.StageEnded(slot.number if slot is not None else 0, task, 0.01))

    def _block(self, slot: FakeSlot) -> None:
        spans, returned = slot.spans, list(slot.pending)
        slot.spans, slot.pending, slot.blocked = [], deque(), True
        self.post(e.SlotBlocked(slot.number, spans, returned))

    def _compute(self, task: int, value_of: Callable[[int], int]) -> int:
        return combine(task, (value_of(dep) for dep in self.deps_of(task)))

    def _span(self, task: int, alone: bool) -> e.Span:
        wall, alone_share, shared_share, width = PROFILES[self.family_of(task)]
        if wall < 1e-4:
            return e.Span(task, self.now, wall, -1.0, -1.0, -1, 0.0)
        return e.Span(task, self.now, wall, wall * (alone_share if alone else shared_share), width, 100, 0.0)

    def _report(self, slot: FakeSlot) -> None:
        event = e.SlotRan(slot.number, slot.spans, list(slot.pending))
        slot.spans, slot.pending, slot.busy, slot.stalled = [], deque(), False, False
        if slot.blocked:
            del self.slots[slot.number]
        self.post(event)

    def _stall(self, slot: FakeSlot) -> None:
        event = e.SlotStalled(slot.number, slot.spans, list(slot.pending))
        slot.spans, slot.pending, slot.stalled = [], deque(), True
        self.post(event)

    def await_future(self, slot: FakeSlot, task: int) -> None:
        """The task that a slot is at waits for a future; if the thread is one of the pool, its slot is blocked."""
        slot.awaits = task
        while slot.outer is not None:
            slot = slot.outer
        if slot.number > 0 and not slot.blocked:
            self._block(slot)

    def _is_waiting(self, slot: FakeSlot) -> bool:
        if slot.awaits is not None and (slot.awaits not in self.futures or self.futures[slot.awaits].outcome):
            slot.awaits = None
        return slot.awaits is not None or slot.waits_for is not None

    def _raise_here(self, slot: FakeSlot) -> None:
        task, slot.current = slot.current, None
        assert task is not None
        self.errors.add(task)
        self.post(e.TaskRaised(task, e.HERE))
        self._report(slot)

    # ---- workers

    def _worker_actions(self, worker: FakeWorker) -> list[Action]:
        if not worker.up:
            return [("start", partial(self._start, worker))]
        found: list[Action] = []
        if worker.outbox:
            found.append(("arrive", partial(self._arrive, worker)))
        if worker.inbox:
            found.append(("hear", partial(self._hear, worker)))
        if worker.current is not None:
            found.append(("run", partial(self._run_away, worker)))
        elif worker.queue:
            found.append(("begin away", partial(self._begin_away, worker)))
        return found

    def _start(self, worker: FakeWorker) -> None:
        worker.up = True
        self.post(e.WorkerStarted(worker.number))

    def _arrive(self, worker: FakeWorker) -> None:
        event = worker.outbox.popleft()
        if isinstance(event, e.WorkerRan):
            for task in event.arrived:
                if self._is_known(task):
                    self.here[task] = worker.values[task] if task in worker.values else self._expected(task)
        elif isinstance(event, e.ValuePublished) and self._is_known_or_wanted(event.task):
            self.published[event.task] = (self._expected(event.task), worker.number)
        self.post(event)

    def _hear(self, worker: FakeWorker) -> None:
        command = worker.inbox.popleft()
        if isinstance(command, c.RunAt):
            for task in command.tasks:
                self._send(worker, task)
        elif isinstance(command, c.Revoke):
            given = [task for task in command.tasks if task in worker.queue]
            for task in given:
                worker.queue.remove(task)
                worker.promised.discard(task)
            worker.outbox.append(e.TasksRevoked(worker.number, given))
        elif isinstance(command, c.Release):
            for task in command.tasks:
                worker.values.pop(task, None)
        elif isinstance(command, c.Publish):
            if command.task in worker.values:
                worker.outbox.append(e.ValuePublished(command.task, worker.number))
        elif isinstance(command, c.Stop):
            self.die(worker)

    def _send(self, worker: FakeWorker, task: int) -> None:
        """As the lane does: inputs go with the task unless they are there; a task of no use any more does not go."""
        if not self._is_known(task):
            self._give_back(worker, task)
            return
        for dep in self.deps_of(task):
            if dep not in worker.values and dep not in worker.queue and dep != worker.current:
                if dep in self.here or dep in self.published:
                    worker.values[dep] = self._expected(dep)
                else:
                    self._give_back(worker, task)
                    return
        worker.queue.append(task)

    def _give_back(self, worker: FakeWorker, task: int) -> None:
        worker.promised.discard(task)
        worker.outbox.append(e.TasksRevoked(worker.number, [task]))

    def _begin_away(self, worker: FakeWorker) -> None:
        task = worker.queue.popleft()
        if self._is_known(task) and any(dep not in worker.values for dep in self.deps_of(task)):
            assert self.trouble, f"task {task} has come to worker {worker.number} without its inputs"
            self._give_back(worker, task)
            return
        worker.current = task
        worker.result = self._compute(task, worker.values.__getitem__) if self._is_known(task) else 0

    def _run_away(self, worker: FakeWorker) -> None:
        task, worker.current = worker.current, None
        assert task is not None
        worker.promised.discard(task)
        if not self._is_known(task):
            worker.outbox.append(e.WorkerRan(worker.number, [e.Span(task, self.now, 1e-3, 1e-3, 1.0, 9, 0.0)], ()))
            worker.values[task] = 0
            return
        worker.values[task] = worker.result
        kind, _ = self.owner[task]
        large = task % 3 == 0
        arrived = () if large else (task,)
        worker.outbox.append(e.WorkerRan(worker.number, [self._span(task, True)], arrived))
        if large and (kind == "future" or self._is_output(task)):
            worker.outbox.append(e.ValuePublished(task, worker.number))

    def _raise_away(self, worker: FakeWorker, event: type) -> None:
        task, worker.current = worker.current, None
        assert task is not None
        worker.promised.discard(task)
        self.errors.add(task)
        worker.outbox.append(event(task, worker.number))

    def _refuse(self, worker: FakeWorker) -> None:
        command = worker.inbox.popleft()
        if command.task in worker.values:
            del worker.values[command.task]
            self.errors.add(command.task)
            worker.outbox.append(e.TaskUnpicklable(command.task, worker.number, must_stay=command.task % 2 == 0))

    def _unsendable(self, worker: FakeWorker) -> None:
        """The first task of what is to be sent cannot be pickled."""
        command = worker.inbox.popleft()
        first = command.tasks[0]
        worker.promised.discard(first)
        if self._is_known(first):
            self.errors.add(first)
            event = e.TaskUnpicklable(first, worker.number, must_stay=first % 2 == 0)
            if command.tasks[1:]:
                worker.inbox.appendleft(c.RunAt(command.worker, command.tasks[1:]))
            self.post(event)
        else:
            worker.inbox.appendleft(command)

    # ---- driving

    def run(self, seed: int | None = None) -> None:
        """Lets everything happen that is under way, in order of the list or as a seeded random walk."""
        rng = random.Random(seed)
        for _ in range(2_000_000):
            actions = self.actions()
            if not actions:
                return
            (actions[0] if seed is None else rng.choice(actions))[1]()
        raise AssertionError("this never ends")

    def finish(self, seed: int | None = None) -> None:
        """Runs everything to its end and checks that nothing is left."""
        self.run(seed)
        assert not self.jobs, f"jobs {list(self.jobs)} never end"
        for future in self.futures.values():
            assert future.outcome, f"future {future.task} never ends"
        if self.futures:
            self.drop(list(self.futures))
        self.run(seed)
        machine = self.machine
        left = {
            "tasks": machine.tasks, "fetching": machine.fetching, "fetches": machine.fetches, "deaths": machine.deaths,
            "causes": machine.causes, "here": self.here, "published": self.published, "calls": self.future_calls,
            "values": {w.number: w.values for w in self.workers.values() if w.values},
            "holds": {w.id: w.holds for w in machine.workers.values() if w.holds},
            "queues": {w.id: w.queue for w in machine.workers.values() if w.queue},
            "spread": machine.jobs[FUTURES].spread, "opening": machine.opening, "pumping": machine.pumping,
        }  # fmt: skip
        assert not {name: what for name, what in left.items() if what}
        self.post(e.WorkersIdled())
        self.now += 100.0
        self.post(e.WorkersIdled())
        self.run(seed)
        assert not machine.workers
