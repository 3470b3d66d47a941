"""The machine as a whole: its log, its table of transitions, and whether the check finds what is wrong."""

from __future__ import annotations

import pytest
from driver import BASE, CALLER, Driver, ran, span

from headrace.errors import InternalError
from headrace.sched import events as e
from headrace.sched import jobs
from headrace.sched.check import verify
from headrace.sched.log import Log
from headrace.sched.machine import Machine
from headrace.sched.policy import FREE
from headrace.sched.state import TRANSITIONS


def test_the_same_events_give_the_same_commands_and_a_task_has_its_story() -> None:
    d = Driver()
    d.submit([(), (0,), (0, 1)], outputs=[2])
    d(ran(CALLER, 100, returned=[101, 102]))
    again = Machine(2)
    for now, event, commands, _ in d.machine.log:
        assert again.handle(event, now) == commands
    assert d.machine.log.complete
    assert [type(entry.event).__name__ for entry in d.machine.story(100)] == ["JobSubmitted", "SlotRan"]
    assert d.machine.story(999) == []


def test_the_log_is_bounded() -> None:
    log = Log(capacity=100)
    for i in range(1000):
        log.append(float(i), e.SlotRan(1, [span(i)], []), [])
    assert len(log) <= 100
    assert not log.complete
    assert log.story(999)


def test_a_forbidden_transition_is_refused() -> None:
    d = Driver()
    d.submit([()])
    task = d.machine.tasks[100]
    with pytest.raises(InternalError, match="may not become"):
        task.state = next(state for state in range(8) if state not in TRANSITIONS[task.state])


@pytest.mark.parametrize("counter", ["waiting", "consumers"])
def test_the_check_finds_a_wrong_counter(counter: str) -> None:
    d = Driver()
    d.submit([(), (0,)])
    task = d.machine.tasks[100]
    setattr(task, counter, getattr(task, counter) + 1)
    with pytest.raises(InternalError):
        verify(d.machine)


def test_the_check_finds_a_lost_wake_up() -> None:
    d = Driver()
    d.know("f", FREE)
    d.submit([()] * 3, outputs=range(3))
    d.machine.idle.append(d.machine.pool[0])
    with pytest.raises(InternalError):
        verify(d.machine)


def test_families_with_ever_new_names_are_forgotten_but_not_those_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "MOST_FAMILIES", 64)
    d = Driver()
    d.submit([()], families="busy", job=1, base=1)
    for number in range(200):
        d(e.FutureSubmitted(BASE + number, (), f"f{number}"))
        d(e.TasksCancelled((BASE + number,)))
        d(e.FuturesDropped((BASE + number,)))
    names = d.machine.families.keys()
    assert len(names) < 2 * 64
    assert {"busy", f"f{199}"} < names
    d(e.QuickTasksRan([("f50", 1, 1e-6)]))  # somebody was still at it
    assert "f50" not in names
