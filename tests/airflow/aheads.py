"""A process that runs a consumer's function ahead of its task, without an Airflow: tests play zygote and producer."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from airflow.sdk import DAG, task

from headrace_airflow import ahead, containment, generators, wire
from headrace_airflow.items import Gatherer, StreamedItems
from headrace_airflow.wire import Channel


@task
def produces():
    yield 1


class Ahead:
    """A process that runs a consumer's function on a stream with the items 1 and 2, the second one held back.

    Args:
        consumer: makes the consumer, in a DAG, of the producer's value.
        contained: as if its author had said nothing.
        first: another first item.
    """

    def __init__(self, consumer: Callable[[Any], Any], contained: bool = False, first: Any = 1) -> None:
        with DAG("dag", schedule=None) as dag:
            consumer(produces())
        self.operator = next(it for name, it in dag.task_dict.items() if name != "produces")
        self.producer = Gatherer()
        self.producer.add(first)
        self.doorbell, at_writer = socket.socketpair()
        there = [[at_writer]]
        self.producer.stream.newcomers = lambda: there.pop() if there else []
        self.at_writer = at_writer
        self.task, to_task = wire.pair()
        self.pid = os.fork()
        if self.pid == 0:
            at_writer.close()
            reserved = containment.reserve() if contained else None
            feed = ahead.Feed(self.producer.stream.id, self.producer.stream.fd, self.doorbell)
            ahead.run(self.operator, {"produces": feed}, Channel(to_task.dup()), lambda message, fds: None, reserved)
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


Start = Callable[..., Ahead]


@contextmanager
def starting() -> Iterator[Start]:
    """Starts them; lets go of them in the end."""
    with ExitStack() as stack:
        yield lambda consumer, **how: stack.enter_context(closing(Ahead(consumer, **how)))
