"""What runs ahead of Airflow: only in the room that tasks leave, and no longer than what feeds it may still succeed."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_airflow.admission import (
    Admission,
    Drained,
    Limits,
    MemoryMeasured,
    SourcesChanged,
    StartTask,
    StopZygote,
    TaskEnded,
    TaskRevoked,
    TaskSubmitted,
    Ticked,
    ZygoteDied,
    ZygoteReady,
)
from headrace_airflow.speculation import (
    LONGEST_S,
    AheadDone,
    AheadGone,
    ConsumerOffered,
    Instance,
    RunAhead,
    StopAhead,
)

FILE = ("bundle", "", "dag.py")
ZYGOTE = 1


def instance(task_id: str) -> Instance:
    return Instance("dag", "run", task_id)


class Node:
    """An admission with a parsed file, and a clock."""

    def __init__(self, cpus: float = 3.0, memory_bytes: int = 100, tasks: int = 10) -> None:
        self.machine = Admission(Limits(cpus, memory_bytes, tasks))
        self.now = 0.0
        self.start("first")
        assert self.hear(ZygoteReady(ZYGOTE)) == [StartTask("first", ZYGOTE)]
        self.end("first")

    def hear(self, event: Any) -> list[Any]:
        return self.machine.handle(event, self.now)

    def start(self, task: str, **needs: Any) -> list[Any]:
        return self.hear(TaskSubmitted(task, FILE, instance=instance(task), **needs))

    def end(self, task: str, succeeded: bool = True) -> list[Any]:
        return self.hear(TaskEnded(task, succeeded))

    def offer(self, consumer: str, *feeders: str, **needs: Any) -> list[Any]:
        return self.hear(ConsumerOffered(f"+{consumer}", instance(consumer), ZYGOTE, frozenset(feeders), **needs))


def run(consumer: str) -> RunAhead:
    return RunAhead(f"+{consumer}", ZYGOTE)


def stop(consumer: str) -> StopAhead:
    return StopAhead(f"+{consumer}", ZYGOTE)


@pytest.fixture
def node() -> Node:
    made = Node()
    made.start("read")
    return made


def test_a_consumer_runs_ahead_and_its_task_takes_it(node: Node) -> None:
    assert node.offer("count", "read") == [run("count")]
    assert node.end("read") == []
    assert node.start("count") == [StartTask("count", ZYGOTE, "+count")]
    assert node.end("count") == []


@pytest.mark.parametrize("done", [True, False])
def test_its_task_may_come_before_the_end_of_what_fed_it_was_heard(node: Node, done: bool) -> None:
    node.offer("count", "read")
    if done:
        node.hear(AheadDone("+count"))
    assert node.start("count") == [StartTask("count", ZYGOTE, "+count")]
    assert node.end("read", succeeded=False) == []


def test_it_goes_when_what_feeds_it_fails_and_so_does_what_it_feeds(node: Node) -> None:
    assert node.offer("transform", "read") == [run("transform")]
    assert node.offer("count", "+transform") == [run("count")]
    assert node.end("read", succeeded=False) == [stop("transform"), stop("count")]
    assert node.start("transform") == [StartTask("transform", ZYGOTE)]


def test_what_its_task_feeds_was_fed_by_it(node: Node) -> None:
    node.offer("transform", "read")
    node.offer("count", "+transform")
    node.end("read")
    assert node.start("transform") == [StartTask("transform", ZYGOTE, "+transform")]
    assert node.end("transform", succeeded=False) == [stop("count")]


def test_an_offer_may_arrive_after_its_feeder_was_taken(node: Node) -> None:
    node.offer("transform", "read")
    node.start("transform")
    assert node.offer("count", "+transform") == [run("count")]
    assert node.end("transform", succeeded=False) == [stop("count")]


def test_an_offer_that_comes_after_the_end_of_its_feeder_is_late(node: Node) -> None:
    node.end("read")
    assert node.offer("count", "read") == [stop("count")]
    assert node.start("count") == [StartTask("count", ZYGOTE)]


def test_it_goes_when_it_fails_itself(node: Node) -> None:
    node.offer("transform", "read")
    node.offer("count", "+transform")
    assert node.hear(AheadGone("+transform")) == [stop("transform"), stop("count")]
    assert node.hear(AheadGone("+transform")) == []


def test_another_try_of_what_feeds_it_feeds_another(node: Node) -> None:
    node.offer("count", "read")
    node.start("read 2")
    again = ConsumerOffered("again", instance("count"), ZYGOTE, frozenset({"read 2"}))
    assert node.hear(again) == [stop("count"), RunAhead("again", ZYGOTE)]


def test_it_waits_for_room_and_leaves_it_to_tasks(node: Node) -> None:
    assert node.offer("large", "read", memory_bytes=101) == []
    assert node.offer("greedy", "read", cpus=2.5) == []
    assert node.offer("one", "read") == [run("one")]
    assert node.offer("two", "read") == [run("two")]
    assert node.start("real") == [StartTask("real", ZYGOTE), stop("two")]
    assert node.start("another") == [StartTask("another", ZYGOTE), stop("one")]
    assert node.offer("late", "read") == []
    assert node.end("real") == [run("late")]


def test_what_is_done_needs_no_cpu(node: Node) -> None:
    node.offer("one", "read", cpus=2.0)
    assert node.offer("two", "read") == []
    assert node.hear(AheadDone("+one")) == [run("two")]


def test_nothing_runs_ahead_while_a_task_waits(node: Node) -> None:
    node.start("needs memory", memory_bytes=100)
    node.start("waits", memory_bytes=1)
    assert node.offer("count", "read") == []
    assert node.end("needs memory") == [StartTask("waits", ZYGOTE), run("count")]


def test_nothing_runs_ahead_on_a_node_that_is_short_of_memory_or_drained(node: Node) -> None:
    node.offer("one", "read")
    assert node.hear(MemoryMeasured(plenty=False)) == [stop("one")]
    assert node.offer("two", "read") == []
    assert node.hear(MemoryMeasured(plenty=True)) == [run("two")]
    node.hear(Drained(on=True))
    assert node.offer("three", "read") == []


def test_it_counts_among_the_tasks_of_a_node() -> None:
    node = Node(tasks=2)
    node.start("read")
    assert node.offer("one", "read", cpus=0.0) == [run("one")]
    assert node.offer("two", "read", cpus=0.0) == []
    assert node.start("real") == [StartTask("real", ZYGOTE), stop("one")]


def test_it_goes_when_its_task_does_not_come(node: Node) -> None:
    node.offer("count", "read")
    node.now = 1000.0
    assert node.hear(Ticked()) == []
    node.end("read")
    node.now += LONGEST_S / 2
    assert node.hear(Ticked()) == []
    node.now += LONGEST_S / 2
    assert node.hear(Ticked()) == [stop("count")]


def test_it_goes_when_its_code_has_changed(node: Node) -> None:
    node.offer("count", "read")
    assert node.hear(SourcesChanged(ZYGOTE, "")) == [stop("count"), StopZygote(ZYGOTE)]


def test_it_goes_with_its_zygote(node: Node) -> None:
    node.offer("count", "read")
    assert node.hear(ZygoteDied(ZYGOTE)) == [stop("count"), StopZygote(ZYGOTE)]


def test_a_task_that_is_killed_takes_it_along(node: Node) -> None:
    node.offer("count", "read")
    node.hear(TaskRevoked("read"))
    assert node.end("read", succeeded=False) == [stop("count")]
