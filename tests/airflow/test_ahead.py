"""A consumer's function in a process of its own, and what its task takes of it; the zygote is played by the tests."""

from __future__ import annotations

import atexit
import builtins
import ctypes
import logging
import math
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, Asset, Metadata, Variable, get_current_context, task

from headrace_airflow import ahead, containment, generators, wire
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


@pytest.fixture
def start() -> Iterator[Callable[..., Ahead]]:
    made: list[Ahead] = []

    def start(consumer: Any, **how: Any) -> Ahead:
        made.append(Ahead(consumer, **how))
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
    ("consumer", "code"),
    [
        (raises, 1),
        (returns_a_function_that_cannot_be_pickled, 1),
        (asks_for_a_variable, ahead.STOPPED),
        (asks_for_its_context, ahead.STOPPED),
        (asks_whether_there_is_a_context, ahead.STOPPED),
    ],
)
def test_a_function_that_gives_up_is_run_by_its_task(start: Any, consumer: Any, code: int) -> None:
    process = start(consumer)
    given = process.end()
    assert process.taken(given) == ("again", [])
    assert process.exit_code() == code


def test_a_value_that_cannot_be_read_is_made_again(start: Any) -> None:
    process = start(returns_what_cannot_be_read)
    assert process.taken(process.end()) == ("again", [])
    assert process.exit_code() == 0


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


# --- contained ---


FILE = Path(os.environ["AIRFLOW_HOME"], "effect")
"""Is there if something got out."""
EARLY = open(os.devnull, "a")  # noqa: SIM115  (as a DAG file may have opened one)
EARLY_SOCKET = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


def leave_a_trace() -> None:
    FILE.write_text("out")


def whatever_happens(function: Callable[[], object]) -> Callable[[Any], Any]:
    """A consumer that does this, and catches all that can be caught."""

    @task
    def consumer(items):
        found = list(items)
        try:
            function()
        except BaseException as error:
            found.append(repr(error))
        return found

    return consumer


class Hostile:
    """Does something wherever it is touched."""

    def __getattr__(self, name: str) -> Any:
        leave_a_trace()

    def __add__(self, other: object) -> Any:
        leave_a_trace()

    def __del__(self) -> None:
        leave_a_trace()

    def __reduce__(self) -> Any:
        leave_a_trace()
        return Hostile, ()


def drop_it() -> None:
    kept = Hostile()
    del kept


def write_in_a_thread() -> None:
    thread = threading.Thread(target=leave_a_trace)
    thread.start()
    thread.join()


def log_to_a_file() -> None:
    logging.getLogger("with a file").addHandler(logging.FileHandler(FILE, delay=True))
    logging.getLogger("with a file").error("out")


def flush_early() -> None:
    EARLY.write("out")
    EARLY.flush()


def map_shared() -> None:
    mmap.mmap(-1, mmap.PAGESIZE)


def system_call(*arguments: Any) -> Callable[[], object]:
    return lambda: ctypes.CDLL(None).syscall(*arguments)


TRIES: dict[str, Callable[[], object]] = {
    "a function that writes": leave_a_trace,
    "an attribute": lambda: Hostile().anything,
    "an operator": lambda: Hostile() + 1,
    "a destructor": drop_it,
    "a replaced builtin": lambda: sum([1]),
    "code made on the way": lambda: exec("leave_a_trace()", globals()),
    "a thread": write_in_a_thread,
    "a logger": log_to_a_file,
    "an import": lambda: __import__("turtledemo"),
    "a file that is read": lambda: FILE.read_text(),
    "a look for a file": FILE.exists,
    "a file that is open": flush_early,
    "a connection that is open": lambda: EARLY_SOCKET[0].send(b"out"),
    "standard input": lambda: os.read(0, 1),
    "a new connection": lambda: socket.create_connection(("127.0.0.1", 9)),
    "a datagram": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"out", str(FILE)),
    "another process": os.fork,
    "a program": lambda: os.system("true"),
    "a signal": lambda: os.kill(os.getppid(), 0),
    "shared memory": map_shared,
    "another folder": lambda: os.chdir("/"),
    "a descriptor of ours": lambda: os.dup2(EARLY.fileno(), 1),
    "a system call": system_call(2, os.fsencode(FILE), os.O_CREAT | os.O_WRONLY, 0o600),
    "a system call of 32 bits": system_call(0x40000000 + 2, os.fsencode(FILE), os.O_CREAT | os.O_WRONLY, 0o600),
    "a fork under another name": system_call(56, signal.SIGCHLD, 0, 0, 0, 0),
    "a variable of its task": lambda: os.getenv("AIRFLOW_CTX_DAG_ID", "none"),
    "all variables": lambda: dict(os.environ),
    "a Variable": lambda: Variable.get("name", default=None),
    "the context": get_current_context,
    "a thread that goes on": lambda: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start(),
    "the end of its process": lambda: atexit.register(print),
}


@pytest.fixture(autouse=True)
def no_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's examples bring one."""
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a DAG file may have replaced what everybody uses."""
    monkeypatch.setattr(builtins, "sum", lambda items: leave_a_trace())
    monkeypatch.setattr(os, "_exit", lambda code: None)


@pytest.mark.usefixtures("replaced")
@pytest.mark.parametrize("name", TRIES)
def test_contained_it_is_stopped_before_it_does_anything(start: Any, name: str) -> None:
    process = start(whatever_happens(TRIES[name]), contained=True)
    assert process.taken(process.end()) == ("again", [])
    assert process.exit_code() in (ahead.STOPPED, -signal.SIGSYS)
    assert not FILE.exists()


@task
def writes_between_items(items):
    for item in items:
        yield item
        leave_a_trace()


@task
def returns_what_writes(items):
    return Hostile()


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    def around(items: Any) -> Any:
        leave_a_trace()
        return function(items)

    return around


@task
@decorated
def is_decorated(items):
    return list(items)


@pytest.mark.parametrize("consumer", [writes_between_items, returns_what_writes, is_decorated])
def test_contained_is_all_of_a_function(start: Any, consumer: Any) -> None:
    process = start(consumer, contained=True)
    assert process.taken(process.end()) == ("again", [])
    assert process.exit_code() in (ahead.STOPPED, -signal.SIGSYS)
    assert not FILE.exists()


class WritesWhenRead:
    def __reduce__(self) -> Any:
        return leave_a_trace, ()


def test_contained_is_the_reading_of_items_too(start: Any) -> None:
    process = start(lists, contained=True, first=WritesWhenRead())
    process.producer.end()
    assert process.exit_code() in (ahead.STOPPED, -signal.SIGSYS)
    assert not FILE.exists()


@task
def writes_to_what_it_reads(items):
    try:
        os.pwrite(items.spool, bytes(8), 0)
    except OSError as error:
        return error.strerror


def test_a_stream_is_only_for_reading(start: Any) -> None:
    process = start(writes_to_what_it_reads, contained=True)
    given = process.end()
    assert process.taken(given) == ("Bad file descriptor", [])
    assert process.exit_code() == 0
    assert given == [1, 2]


@task
def computes(items):
    results: list[Any] = []
    threads = [threading.Thread(target=results.append, args=(math.sqrt(item),)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(0.01)
    bytearray(1 << 26)
    assert random.random() < 1 < time.time()
    assert os.urandom(8)
    assert os.environ["AIRFLOW_HOME"]
    print("printed")
    logging.getLogger("airflow.task").info("logged")
    return len(results)


def test_contained_it_may_compute(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    process = start(computes, contained=True)
    assert process.taken(process.end()) == (2, [])
    assert process.exit_code() == 0
    assert b'"logged"' in os.pread(process.log, 10_000, 0)
    assert "printed" in capfd.readouterr().out


@task
def doubles_arrays(items):
    import numpy as np

    for item in items:
        yield np.full(100_000, item) * 2


def test_contained_it_may_stream(start: Any) -> None:
    import numpy as np

    process = start(doubles_arrays, contained=True, first=np.ones(100_000))
    value, _ = process.taken(process.end())
    assert [array.sum() for array in value] == [200_000, 400_000]
    assert process.exit_code() == 0
