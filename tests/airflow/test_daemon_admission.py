"""The node daemon's decisions: lists of commands, and what Hypothesis makes of them."""

from __future__ import annotations

from typing import Any

from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headrace_airflow.admission import (
    BARE,
    Admission,
    Command,
    Drained,
    DropTask,
    Event,
    KillTask,
    Limits,
    MemoryMeasured,
    SourcesChanged,
    StartTask,
    StartZygote,
    StopZygote,
    TaskEnded,
    TaskMeasured,
    TaskRevoked,
    TaskSubmitted,
    Ticked,
    ZygoteDied,
    ZygoteReady,
    ZygoteUnfit,
)

FILE = ("bundle", "", "a.py")
OTHER = ("bundle", "", "b.py")
LIMITS = Limits(cpus=2, memory_bytes=1000, tasks=10, patience_s=10, idle_s=100, zygotes=2)


def machine(*events: Event, limits: Limits = LIMITS) -> Admission:
    made = Admission(limits)
    for event in events:
        made.handle(event, 0.0)
    return made


def test_a_task_waits_for_the_parse_of_its_file() -> None:
    made = machine()
    assert made.handle(TaskSubmitted("a", FILE), 0.0) == [StartZygote(1, FILE)]
    assert made.handle(TaskSubmitted("b", FILE), 1.0) == []
    assert made.handle(ZygoteReady(1), 2.0) == [StartTask("a", 1), StartTask("b", 1)]


def test_a_task_without_a_file_starts_from_the_bare_zygote() -> None:
    assert machine().handle(TaskSubmitted("a", None), 0.0) == [StartTask("a", BARE)]


def test_tasks_of_a_file_that_cannot_be_held_start_from_the_bare_zygote() -> None:
    made = machine(TaskSubmitted("a", FILE))
    assert made.handle(ZygoteUnfit(1), 0.0) == [StartTask("a", BARE)]
    assert made.handle(TaskSubmitted("b", FILE), 0.0) == [StartTask("b", BARE)]


def test_a_file_that_crashes_its_zygote_is_not_parsed_again_for_every_task() -> None:
    made = machine(TaskSubmitted("a", FILE))
    assert made.handle(ZygoteDied(1), 0.0) == [StartTask("a", BARE)]
    assert made.handle(TaskSubmitted("b", FILE), 0.0) == [StartTask("b", BARE)]


def test_a_zygote_that_was_killed_later_is_replaced() -> None:
    made = machine(TaskSubmitted("a", FILE), ZygoteReady(1), ZygoteDied(1))
    assert made.handle(TaskSubmitted("b", FILE), 0.0) == [StartZygote(2, FILE)]


def test_a_task_whose_zygote_is_gone_starts_from_the_next() -> None:
    made = machine(TaskSubmitted("a", FILE), ZygoteReady(1))
    assert made.handle(ZygoteDied(1, "a"), 0.0) == [StopZygote(1), StartZygote(2, FILE)]
    assert made.handle(ZygoteDied(1), 0.0) == []
    assert made.handle(ZygoteReady(2), 0.0) == [StartTask("a", 2)]


def dies(made: Admission, *numbers: int) -> list[Command]:
    """Has one zygote after the other end before it has forked its task."""
    commands: list[Command] = []
    for number in numbers:
        made.handle(ZygoteReady(number), 0.0)
        commands = made.handle(ZygoteDied(number, "a"), 0.0)
    return commands


def test_a_file_whose_zygotes_always_end_is_not_held_until_it_changes() -> None:
    made = machine(TaskSubmitted("a", FILE))
    assert dies(made, 1, 2) == [StopZygote(2), StartZygote(3, FILE)]
    assert dies(made, 3) == [StartTask("a", BARE)]
    made.handle(TaskEnded("a", succeeded=True), 0.0)
    assert made.handle(TaskSubmitted("a", FILE), 0.0) == [StartTask("a", BARE)]
    assert made.handle(SourcesChanged(3, "a"), 0.0) == [StopZygote(3), StartZygote(4, FILE)]
    assert dies(made, 4) == [StopZygote(4), StartZygote(5, FILE)]


def test_deaths_are_forgiven_when_a_task_of_the_next_zygote_succeeds() -> None:
    made = machine(TaskSubmitted("a", FILE))
    dies(made, 1, 2)
    for event in (ZygoteReady(3), TaskEnded("a", succeeded=True), TaskSubmitted("a", FILE)):
        commands = made.handle(event, 0.0)
    assert commands == [StartTask("a", 3)]
    assert made.handle(ZygoteDied(3, "a"), 0.0) == [StopZygote(3), StartZygote(4, FILE)]


def test_changed_sources_replace_the_zygote_before_the_task_starts() -> None:
    made = machine(TaskSubmitted("a", FILE), ZygoteReady(1))
    assert made.handle(SourcesChanged(1, "a"), 0.0) == [StopZygote(1), StartZygote(2, FILE)]
    assert made.handle(ZygoteReady(2), 0.0) == [StartTask("a", 2)]


def test_patience_ends() -> None:
    made = machine(TaskSubmitted("a", FILE))
    assert made.handle(Ticked(), 9.9) == []
    assert made.handle(Ticked(), 10.0) == [StartTask("a", BARE)]


def test_a_task_that_waits_for_a_parse_holds_back_nobody() -> None:
    made = machine(TaskSubmitted("a", FILE, priority=9))
    assert made.handle(TaskSubmitted("b", None), 0.0) == [StartTask("b", BARE)]


def test_priority_goes_first_then_arrival() -> None:
    made = machine(*[TaskSubmitted(name, None) for name in "xy"])
    made.handle(TaskSubmitted("late", None, priority=1), 0.0)
    made.handle(TaskSubmitted("low", None, priority=0), 0.0)
    made.handle(TaskSubmitted("high", None, priority=2), 0.0)
    assert made.handle(TaskEnded("x"), 0.0) == [StartTask("high", BARE)]
    assert made.handle(TaskEnded("y"), 0.0) == [StartTask("late", BARE)]


def test_tasks_that_sleep_leave_room() -> None:
    made = machine(*[TaskSubmitted(name, None) for name in "abc"])
    assert [task.running for task in made.tasks.values()] == [True, True, False]
    assert made.handle(TaskMeasured("a", 0.0), 1.0) == [StartTask("c", BARE)]


def test_declared_cpus_are_kept_free_whatever_is_used() -> None:
    made = machine(TaskSubmitted("a", None, cpus=2), TaskSubmitted("b", None))
    assert made.handle(TaskMeasured("a", 0.0), 1.0) == []
    assert made.handle(TaskEnded("a"), 1.0) == [StartTask("b", BARE)]


def test_declared_memory_is_kept_free() -> None:
    made = machine(TaskSubmitted("a", None, cpus=0, memory_bytes=600))
    assert made.handle(TaskSubmitted("b", None, cpus=0, memory_bytes=600), 0.0) == []
    assert made.handle(TaskEnded("a"), 0.0) == [StartTask("b", BARE)]


def test_who_has_waited_long_no_longer_waits_for_cpus_but_for_memory() -> None:
    made = machine(*[TaskSubmitted(name, None) for name in "ab"])
    made.handle(TaskSubmitted("c", None), 5.0)
    made.handle(TaskSubmitted("large", None, memory_bytes=2000), 5.0)
    assert made.handle(Ticked(), 64.9) == []
    assert made.handle(Ticked(), 65.0) == [StartTask("c", BARE)]
    assert made.handle(Ticked(), 500.0) == []


def test_who_waits_for_memory_holds_back_only_those_that_declare_some() -> None:
    made = machine(TaskSubmitted("a", None, cpus=0, memory_bytes=600))
    made.handle(TaskSubmitted("large", None, cpus=0, memory_bytes=600), 0.0)
    assert made.handle(TaskSubmitted("b", None, cpus=0, memory_bytes=100), 0.0) == []
    assert made.handle(TaskSubmitted("c", None, cpus=0), 0.0) == [StartTask("c", BARE)]
    assert made.handle(TaskEnded("a"), 0.0) == [StartTask("large", BARE), StartTask("b", BARE)]


def test_a_node_is_full_when_a_task_has_waited_for_a_while_for_others_to_end() -> None:
    made = machine(*[TaskSubmitted(name, None) for name in "abc"])
    made.handle(Ticked(), 4.9)
    assert not made.full
    made.handle(Ticked(), 5.0)
    assert made.full
    made.handle(TaskEnded("a"), 5.0)
    assert not made.full


def test_a_node_is_not_full_where_others_could_start() -> None:
    made = machine(*[TaskSubmitted(name, None, cpus=0, memory_bytes=600) for name in "ab"], TaskSubmitted("c", FILE))
    made.handle(Ticked(), 9.0)
    assert made.waits_for("b") == "memory that other tasks have declared"
    assert made.waits_for("c") == "the parse of its DAG file"
    assert not made.full


def test_a_drained_node_in_which_a_task_waits_is_full() -> None:
    made = machine(Drained(True))
    made.handle(Ticked(), 60.0)
    assert not made.full, "nothing waits"
    made.handle(TaskSubmitted("a", None), 60.0)
    made.handle(Ticked(), 65.0)
    assert made.full
    made.handle(Drained(False), 65.0)
    assert not made.full


def test_a_large_task_gets_its_turn() -> None:
    made = machine(TaskSubmitted("a", None), TaskSubmitted("large", None, cpus=2))
    assert made.handle(TaskSubmitted("small", None), 0.0) == []
    assert made.handle(TaskEnded("a"), 0.0) == [StartTask("large", BARE)]
    assert made.handle(TaskEnded("large"), 0.0) == [StartTask("small", BARE)]


def test_a_task_larger_than_the_node_runs_alone() -> None:
    made = machine()
    assert made.handle(TaskSubmitted("a", None, cpus=64, memory_bytes=10**9), 0.0) == [StartTask("a", BARE)]
    assert made.handle(TaskSubmitted("b", None), 0.0) == []


def test_without_memory_only_one_task_runs() -> None:
    made = machine(MemoryMeasured(False))
    assert made.handle(TaskSubmitted("a", None), 0.0) == [StartTask("a", BARE)]
    assert made.handle(TaskSubmitted("b", None), 0.0) == []
    assert made.handle(MemoryMeasured(True), 0.0) == [StartTask("b", BARE)]


def test_a_waiting_task_is_dropped_and_a_running_one_killed_once() -> None:
    made = machine(TaskSubmitted("a", None, cpus=2), TaskSubmitted("b", None))
    assert made.handle(TaskRevoked("b"), 0.0) == [DropTask("b")]
    assert made.handle(TaskRevoked("a"), 0.0) == [KillTask("a")]
    assert made.handle(TaskRevoked("a"), 0.0) == []
    assert made.handle(TaskRevoked("nobody"), 0.0) == []


def test_a_drained_node_starts_nothing() -> None:
    made = machine(Drained(True))
    assert made.handle(TaskSubmitted("a", None), 0.0) == []
    assert made.handle(Drained(False), 0.0) == [StartTask("a", BARE)]


def test_says_what_a_task_waits_for() -> None:
    made = machine(TaskSubmitted("a", FILE))
    assert made.waits_for("a") == "the parse of its DAG file"
    made.handle(ZygoteReady(1), 0.0)
    assert made.waits_for("a") == ""
    made.handle(TaskSubmitted("b", FILE, 0, 2.0), 0.0)
    made.handle(TaskSubmitted("c", FILE, 0, 1.0), 0.0)
    assert (made.waits_for("b"), made.waits_for("c")) == ("cpus", "the tasks before it")
    made.handle(Drained(True), 0.0)
    assert made.waits_for("b") == "the end of the drain"


def test_a_submission_that_comes_twice_starts_once() -> None:
    made = machine(TaskSubmitted("a", None))
    assert made.handle(TaskSubmitted("a", None), 0.0) == []


def test_unused_zygotes_go() -> None:
    made = machine(TaskSubmitted("a", FILE), ZygoteReady(1), TaskEnded("a"))
    assert made.handle(Ticked(), 99.0) == []
    assert made.handle(Ticked(), 100.0) == [StopZygote(1)]
    assert made.handle(TaskSubmitted("b", FILE), 101.0) == [StartZygote(2, FILE)]


def test_of_too_many_zygotes_the_one_unused_longest_goes() -> None:
    made = machine()
    for number, name in enumerate(("a.py", "b.py", "c.py"), 1):
        made.handle(TaskSubmitted(name, ("bundle", "", name)), float(number))
        made.handle(ZygoteReady(number), float(number))
        made.handle(TaskEnded(name), float(number))
    assert made.handle(Ticked(), 4.0) == [StopZygote(1)]


class Random(RuleBasedStateMachine):
    """Any order of events: every task starts at most once at a time, within the limits, and none is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.made = Admission(LIMITS)
        self.now = 0.0
        self.count = 0
        self.waiting: set[str] = set()
        self.running: dict[str, int] = {}
        self.parsing: set[int] = set()
        self.held: set[int] = set()

    def send(self, event: Event) -> None:
        for command in self.made.handle(event, self.now):
            match command:
                case StartTask(task, zygote):
                    self.waiting.remove(task)
                    assert zygote == BARE or zygote in self.held
                    self.running[task] = zygote
                case DropTask(task):
                    self.waiting.remove(task)
                case KillTask(task):
                    assert task in self.running
                case StartZygote(zygote, _):
                    self.parsing.add(zygote)
                case StopZygote(zygote):
                    self.parsing.discard(zygote)
                    self.held.discard(zygote)

    @rule(
        file=strategies.sampled_from([None, FILE, OTHER]),
        cpus=strategies.sampled_from([None, 0, 1, 3]),
        memory=strategies.sampled_from([0, 600]),
        priority=strategies.integers(0, 2),
    )
    def submit(self, file: Any, cpus: Any, memory: int, priority: int) -> None:
        self.count += 1
        name = f"t{self.count}"
        self.waiting.add(name)
        self.send(TaskSubmitted(name, file, priority, cpus, memory))

    @rule(data=strategies.data())
    def end(self, data: Any) -> None:
        if self.running:
            task = data.draw(strategies.sampled_from(sorted(self.running)))
            del self.running[task]
            self.send(TaskEnded(task))

    @rule(data=strategies.data())
    def revoke(self, data: Any) -> None:
        if known := sorted(self.waiting | set(self.running)):
            self.send(TaskRevoked(data.draw(strategies.sampled_from(known))))

    @rule(data=strategies.data())
    def measure(self, data: Any) -> None:
        if self.running:
            task = data.draw(strategies.sampled_from(sorted(self.running)))
            self.send(TaskMeasured(task, data.draw(strategies.sampled_from([0.0, 0.5, 2.0]))))

    @rule(data=strategies.data(), how=strategies.sampled_from([ZygoteReady, ZygoteUnfit, ZygoteDied]))
    def settle(self, data: Any, how: Any) -> None:
        if self.parsing:
            zygote = data.draw(strategies.sampled_from(sorted(self.parsing)))
            self.parsing.remove(zygote)
            if how is ZygoteReady:
                self.held.add(zygote)
            self.send(how(zygote))

    @rule(data=strategies.data())
    def change(self, data: Any) -> None:
        if started := sorted(task for task, zygote in self.running.items() if zygote in self.held):
            task = data.draw(strategies.sampled_from(started))
            zygote = self.running.pop(task)
            self.waiting.add(task)
            self.send(SourcesChanged(zygote, task))

    @rule(seconds=strategies.sampled_from([1.0, 20.0, 200.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.send(Ticked())

    @invariant()
    def agrees(self) -> None:
        assert {task.key for task in self.made.tasks.values() if task.running} == set(self.running)
        assert {task.key for task in self.made.tasks.values() if not task.running} == self.waiting

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        assert self.running or not any(self.made.tasks[task].file is None for task in self.waiting)
        assert self.running or self.parsing or not self.waiting
        assert all(self.made.waits_for(task) for task in self.waiting)
        assert not any(self.made.waits_for(task) for task in self.running)

    @invariant()
    def memory_is_not_promised_twice(self) -> None:
        promised = [self.made.tasks[task].memory_bytes for task in self.running]
        assert len(promised) == 1 or sum(promised) <= LIMITS.memory_bytes


TestRandom = Random.TestCase
TestRandom.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
