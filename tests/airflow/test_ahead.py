"""A consumer's function in a process of its own, and what its task takes of it; the zygote is played by the tests."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, Metadata, Variable, get_current_context, task

from headrace_airflow import ahead, generators, wire
from headrace_airflow.items import Gatherer, StreamedItems
from headrace_airflow.wire import Channel

ASSET = Asset("rows")


@task
def produces():
    yield 1


@task
def lists(items):
    print("printed")
    logging.getLogger("airflow.task").info("logged")
    return list(items)


@task
def doubles(items):
    for item in items:
        yield Metadata(ASSET, {"item": item})
        yield 2 * item


@task
def hands_on(items):
    return items


@task
def raises(items):
    raise KeyError(next(iter(items)))


@task
def returns_a_function_that_cannot_be_pickled(items):
    return sys._getframe()


@task
def asks_for_a_variable(items):
    try:
        return Variable.get("name", default=None)
    except Exception:
        return None


@task
def asks_for_its_context(items):
    try:
        return get_current_context()["run_id"]
    except Exception:
        return None


class Ahead:
    """A process that runs a consumer's function on a stream with the items 1 and 2, the second one held back."""

    def __init__(self, consumer: Callable[[Any], Any]) -> None:
        with DAG("dag", schedule=None) as dag:
            consumer(produces())
        self.operator = next(it for name, it in dag.task_dict.items() if name != "produces")
        self.producer = Gatherer()
        self.producer.add(1)
        self.doorbell, at_writer = socket.socketpair()
        there = [[at_writer]]
        self.producer.stream.newcomers = lambda: there.pop() if there else []
        self.at_writer = at_writer
        self.task, to_task = wire.pair()
        self.pid = os.fork()
        if self.pid == 0:
            at_writer.close()
            feed = ahead.Feed(self.producer.stream.id, self.producer.stream.fd, self.doorbell)
            ahead.run(self.operator, {"produces": feed}, Channel(to_task), lambda message, fds: None)
        to_task.close()
        self.log = os.memfd_create("log")

    def end(self) -> StreamedItems:
        self.producer.add(2)
        return self.producer.end()

    def taken(self, given: Any) -> Any:
        """What the task has for a value, and what it yields; ``"again"``: it has run the function itself."""
        function = self.operator.python_callable
        takes = ahead.Forerunner(self.task, self.log).before(function, lambda *args: "again")
        found: list[Any] = []
        return generators.exhaust(takes(given), found.append), found

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        for channel in (self.task, self.doorbell, self.at_writer):
            channel.close()
        os.close(self.log)
        del self.producer  # its stream goes with it


@pytest.fixture
def start() -> Iterator[Callable[[Any], Ahead]]:
    made: list[Ahead] = []

    def start(consumer: Any) -> Ahead:
        made.append(Ahead(consumer))
        return made[-1]

    yield start
    for process in made:
        process.close()


def test_a_value_is_taken_with_what_was_logged_and_printed(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    process = start(lists)
    given = process.end()
    assert process.taken(given) == ([1, 2], [])
    assert process.exit_code() == 0
    assert b'"logged"' in os.pread(process.log, 10_000, 0)
    assert "printed" in capfd.readouterr().out


def test_a_stream_is_taken_with_its_metadata(start: Any) -> None:
    process = start(doubles)
    given = process.end()
    value, metadata = process.taken(given)
    assert isinstance(value, StreamedItems)
    assert value == [2, 4]
    assert [it.extra for it in metadata] == [{"item": 1}, {"item": 2}]
    assert process.exit_code() == 0


def test_a_stream_may_be_handed_on(start: Any) -> None:
    process = start(hands_on)
    given = process.end()
    assert process.taken(given) == ([1, 2], [])
    assert process.exit_code() == 0


def test_another_stream_of_the_same_items_is_another(start: Any) -> None:
    process = start(lists)
    process.end()
    other = Gatherer()
    for item in (1, 2):
        other.add(item)
    assert process.taken(other.end()) == ("again", [])
    assert process.exit_code() == 0


@pytest.mark.parametrize("given", [None, [1, 2]])
def test_what_is_no_stream_was_not_read(start: Any, given: Any) -> None:
    process = start(lists)
    process.end()
    assert process.taken(given) == ("again", [])
    assert process.exit_code() == 0


@pytest.mark.parametrize(
    "consumer",
    [raises, returns_a_function_that_cannot_be_pickled, asks_for_a_variable, asks_for_its_context],
)
def test_a_function_that_gives_up_is_run_by_its_task(start: Any, consumer: Any) -> None:
    process = start(consumer)
    given = process.end()
    assert process.taken(given) == ("again", [])
    assert process.exit_code() == 1


def test_a_consumer_whose_producer_is_gone_gives_up(start: Any) -> None:
    process = start(lists)
    process.at_writer.close()
    assert process.exit_code() == 1
    given = process.end()
    assert process.taken(given) == ("again", [])


def test_a_process_that_was_killed_has_made_nothing(start: Any) -> None:
    process = start(lists)
    os.kill(process.pid, 9)
    assert process.exit_code() == -9
    assert process.taken(process.end()) == ("again", [])
