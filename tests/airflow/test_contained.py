"""What runs ahead without its author's word: it may compute, and is stopped before anybody could tell that it ran."""

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
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aheads import Start, starting
from airflow.sdk import Asset, Metadata, Variable, get_current_context, listener, task

from headrace_airflow import ahead, containment


@pytest.fixture
def start() -> Iterator[Start]:
    with starting() as start:
        yield start


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


OPEN, KERNEL = "open(", "its process has ended"
TRIES: dict[str, tuple[Callable[[], object], str]] = {
    "a function that writes": (leave_a_trace, OPEN),
    "an attribute": (lambda: Hostile().anything, OPEN),
    "an operator": (lambda: Hostile() + 1, OPEN),
    "a destructor": (drop_it, OPEN),
    "a replaced builtin": (lambda: oct(1), OPEN),
    "code made on the way": (lambda: exec("leave_a_trace()", globals()), OPEN),
    "a thread": (write_in_a_thread, OPEN),
    "a logger": (log_to_a_file, OPEN),
    "an import": (lambda: __import__("turtledemo"), "import('turtledemo')"),
    "a file that is read": (lambda: FILE.read_text(), OPEN),
    "a look for a file": (FILE.exists, KERNEL),
    "a file that is open": (flush_early, KERNEL),
    "a connection that is open": (lambda: EARLY_SOCKET[0].send(b"out"), KERNEL),
    "standard input": (lambda: os.read(0, 1), KERNEL),
    "a new connection": (socket.socket, KERNEL),
    "a datagram": (lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"out", str(FILE)), KERNEL),
    "another process": (os.fork, KERNEL),
    "a program": (lambda: os.system("true"), "os.system"),
    "a signal": (lambda: os.kill(os.getppid(), 0), KERNEL),
    "shared memory": (map_shared, KERNEL),
    "another folder": (lambda: os.chdir("/"), KERNEL),
    "a descriptor of ours": (lambda: os.dup2(EARLY.fileno(), 1), KERNEL),
    "a system call": (system_call(2, os.fsencode(FILE), os.O_CREAT | os.O_WRONLY, 0o600), KERNEL),
    "a system call of 32 bits": (
        system_call(0x40000000 + 2, os.fsencode(FILE), os.O_CREAT | os.O_WRONLY, 0o600),
        KERNEL,
    ),
    "a fork under another name": (system_call(56, signal.SIGCHLD, 0, 0, 0, 0), KERNEL),
    "a variable of its task": (lambda: os.getenv("AIRFLOW_CTX_DAG_ID", "none"), "the variable AIRFLOW_CTX_DAG_ID"),
    "all variables": (lambda: dict(os.environ), "all variables"),
    "a Variable": (lambda: Variable.get("name", default=None), "it asks for"),
    "the context": (get_current_context, "its context"),
    "a thread that goes on": (
        lambda: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start(),
        "work for later",
    ),
    "the end of its process": (lambda: atexit.register(print), "work for later"),
}


@pytest.fixture(autouse=True)
def no_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's examples bring one."""
    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a DAG file may have replaced what everybody uses."""
    monkeypatch.setattr(builtins, "oct", lambda number: leave_a_trace())
    monkeypatch.setattr(os, "_exit", lambda code: None)


@pytest.mark.usefixtures("replaced")
@pytest.mark.parametrize("name", TRIES)
def test_it_is_stopped_before_it_does_anything(start: Start, caplog: pytest.LogCaptureFixture, name: str) -> None:
    function, why = TRIES[name]
    process = start(whatever_happens(function), contained=True)
    assert process.taken(process.end()) == ("again", [])
    assert process.exit_code() == (-signal.SIGSYS if why == KERNEL else ahead.STOPPED)
    assert why in caplog.text
    assert not FILE.exists()


@task
def writes_between_items(items):
    for item in items:
        yield item
        yield Metadata(Asset("rows"))
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
def test_contained_is_all_of_a_function(start: Start, caplog: pytest.LogCaptureFixture, consumer: Any) -> None:
    process = start(consumer, contained=True)
    assert process.taken(process.end()) == ("again", [])
    assert process.exit_code() == ahead.STOPPED
    assert OPEN in caplog.text
    assert not FILE.exists()


@task
def lists(items):
    return list(items)


class WritesWhenRead:
    def __reduce__(self) -> Any:
        return leave_a_trace, ()


def test_contained_is_the_reading_of_items_too(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    process = start(lists, contained=True, first=WritesWhenRead())
    assert process.taken(process.producer.end()) == ("again", [])
    assert process.exit_code() == ahead.STOPPED
    assert OPEN in caplog.text
    assert not FILE.exists()


class Listening:
    has_listeners = True


def have_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "get_listener_manager", Listening)


def have_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__TRACES__OTEL_ON", "True")


def have_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment.platform, "machine", lambda: "another")


@pytest.mark.parametrize("prepare", [have_listeners, have_traces, have_no_filter])
def test_what_cannot_be_contained_does_not_begin(
    start: Start, monkeypatch: pytest.MonkeyPatch, prepare: Callable[[pytest.MonkeyPatch], None]
) -> None:
    prepare(monkeypatch)
    process = start(lists, contained=True)
    assert process.taken(process.end()) == ("again", [])
    assert process.exit_code() == ahead.STOPPED


def test_what_shares_memory_does_not_begin(start: Start) -> None:
    with mmap.mmap(-1, mmap.PAGESIZE):
        process = start(lists, contained=True)
    assert process.taken(process.end()) == ("again", [])
    assert process.exit_code() == ahead.STOPPED


@task
def writes_to_what_it_reads(items):
    try:
        os.pwrite(items.spool, bytes(8), 0)
    except OSError as error:
        return error.strerror


def test_a_stream_is_only_for_reading(start: Start) -> None:
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
    time.sleep(0.01)  # which is a system call, as more memory is
    bytearray(1 << 26)
    assert random.random() < 1 < time.time()
    assert os.urandom(8)
    assert os.environ["AIRFLOW_HOME"]
    print("printed")
    logging.getLogger("airflow.task").info("logged")
    return len(results)


def test_it_may_compute(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
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


def test_it_may_stream(start: Start) -> None:
    import numpy as np

    process = start(doubles_arrays, contained=True, first=np.ones(100_000))
    value, _ = process.taken(process.end())
    assert [array.sum() for array in value] == [200_000, 400_000]
    assert process.exit_code() == 0
