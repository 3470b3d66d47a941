"""A task's worker processes, as the task orders them: against a zygote that says what the test has it say."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from headrace import foster
from headrace.config import available_cores
from headrace_airflow import wire, workers
from headrace_airflow.wire import Channel
from headrace_airflow.workers import take_from

ORDER = foster.Order("module", "main", (), (), {})


@pytest.fixture
def zygote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    """The zygote's end of the connection that ``foster.start`` uses."""
    monkeypatch.setattr(foster, "start", None)
    monkeypatch.setenv("HEADRACE_NUM_WORKERS", "1")
    channel, theirs = wire.pair()
    take_from(theirs, 1.0)
    with closing(channel):
        yield channel


def start() -> foster.Fostered:
    assert foster.start is not None
    return foster.start(ORDER)


def say_forked(zygote: Channel, pid: int) -> None:
    pid_fd = os.pidfd_open(os.getpid())
    zygote.send({"t": "forked", "pid": pid}, [pid_fd])
    os.close(pid_fd)


def test_what_others_end_with_is_kept_for_those_who_ask(zygote: Channel) -> None:
    say_forked(zygote, 5)
    first = start()
    zygote.send({"t": "exit", "pid": 5, "code": -9, "rss_bytes": 7})
    say_forked(zygote, 6)
    second = start()
    assert (first.pid, second.pid) == (5, 6)
    assert first.collect() == (-9, 7)
    for process in (first, second):
        os.close(process.pid_fd)


def test_a_refusal_says_why(zygote: Channel) -> None:
    zygote.send({"t": "refused", "why": "it is contained"})
    with pytest.raises(OSError, match="contained"):
        start()


def test_an_answer_that_comes_too_late_answers_no_later_order(zygote: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_ANSWER_WITHIN_S", 0.05)
    with pytest.raises(OSError, match="does not answer"):
        start()
    say_forked(zygote, 5)
    with pytest.raises(OSError, match="does not answer"):
        start()


def test_how_a_worker_ended_is_unknown_once_the_zygote_is_gone(zygote: Channel) -> None:
    say_forked(zygote, 5)
    process = start()
    zygote.close()
    assert process.collect() is None
    os.close(process.pid_fd)


@pytest.mark.parametrize(
    ("cpus", "before", "expected"),
    [(1.5, None, "1"), (0.5, None, "1"), (1e6, None, str(available_cores())), (1.0, "3", "3")],
)
def test_a_task_has_no_more_workers_than_cpus_unless_it_says_so(
    cpus: float, before: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foster, "start", None)
    monkeypatch.setenv("HEADRACE_NUM_WORKERS", before or "")
    if before is None:
        monkeypatch.delenv("HEADRACE_NUM_WORKERS")
    ours, theirs = socket.socketpair()
    with ours:
        take_from(theirs, cpus)
        assert os.environ["HEADRACE_NUM_WORKERS"] == expected
