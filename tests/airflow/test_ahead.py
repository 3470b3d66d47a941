"""A consumer's function in a process of its own, and what its task takes of it; the zygote is played by the tests."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from aheads import Start, starting
from airflow.sdk import Asset, Metadata, Variable, get_current_context, task

from headrace_airflow import ahead
from headrace_airflow.items import Gatherer, StreamedItems

ASSET = Asset("rows")


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
    except Exception:  # a user's: that it has asked must come out all the same
        return None


@task
def asks_for_its_context(items):
    try:
        return get_current_context()["run_id"]
    except Exception:
        return None


@task
def asks_whether_there_is_a_context(items):
    try:
        return len(get_current_context())
    except Exception:
        return None


class Unreadable:
    def __reduce__(self):
        return int, ("no number",)


@task
def returns_what_cannot_be_read(items):
    return Unreadable()


@pytest.fixture
def start() -> Iterator[Start]:
    with starting() as start:
        yield start


def test_a_value_is_taken_with_what_was_logged_and_printed(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    process = start(lists)
    given = process.end()
    assert process.taken(given) == ([1, 2], [])
    assert process.exit_code() == 0
    assert b'"logged"' in os.pread(process.log, 10_000, 0)
    assert "printed" in capfd.readouterr().out


def test_a_stream_is_taken_with_its_metadata(start: Start) -> None:
    process = start(doubles)
    given = process.end()
    value, metadata = process.taken(given)
    assert isinstance(value, StreamedItems)
    assert value == [2, 4]
    assert [it.extra for it in metadata] == [{"item": 1}, {"item": 2}]
    assert process.exit_code() == 0


def test_a_stream_may_be_handed_on(start: Start) -> None:
    process = start(hands_on)
    given = process.end()
    assert process.taken(given) == ([1, 2], [])
    assert process.exit_code() == 0


def test_another_stream_of_the_same_items_is_another(start: Start) -> None:
    process = start(lists)
    process.end()
    other = Gatherer()
    for item in (1, 2):
        other.add(item)
    assert process.taken(other.end()) == ("again", [])
    assert process.exit_code() == 0


@pytest.mark.parametrize("given", [None, [1, 2]])
def test_what_is_no_stream_was_not_read(start: Start, given: Any) -> None:
    process = start(lists)
    process.end()
    assert process.taken(given) == ("again", [])
    assert process.exit_code() == 0


@pytest.mark.parametrize(
    ("consumer", "code"),
    [
        (raises, 1),
        (returns_a_function_that_cannot_be_pickled, 1),
        (asks_for_a_variable, ahead.STOPPED),
        (asks_for_its_context, ahead.STOPPED),
        (asks_whether_there_is_a_context, ahead.STOPPED),
    ],
)
def test_a_function_that_gives_up_is_run_by_its_task(start: Start, consumer: Any, code: int) -> None:
    process = start(consumer)
    given = process.end()
    assert process.taken(given) == ("again", [])
    assert process.exit_code() == code


def test_a_value_that_cannot_be_read_is_made_again(start: Start) -> None:
    process = start(returns_what_cannot_be_read)
    assert process.taken(process.end()) == ("again", [])
    assert process.exit_code() == 0


def test_a_consumer_whose_producer_is_gone_gives_up(start: Start) -> None:
    process = start(lists)
    process.at_writer.close()
    assert process.exit_code() == 1
    given = process.end()
    assert process.taken(given) == ("again", [])


def test_a_process_that_was_killed_has_made_nothing(start: Start) -> None:
    process = start(lists)
    os.kill(process.pid, 9)
    assert process.exit_code() == -9
    assert process.taken(process.end()) == ("again", [])
