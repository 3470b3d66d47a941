"""How exceptions come back from worker processes, and what tasks may do to their worker."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from headrace import testing as t
from headrace.errors import RemoteTraceback
from headrace.lanes.processes.failures import describe_failure, revive_failure
from headrace.sched.events import TaskRaised, WorkerDied, WorkerRan


def run_all(host: Any, lane: Any, *tasks: int) -> None:
    """Runs tasks at worker 1 and waits until all have ended, one way or the other."""
    lane.run(1, tasks)
    lane.flush()

    def ended() -> bool:
        done = {s.task for e in host.of(WorkerRan) for s in e.spans} | {e.task for e in host.of(TaskRaised)}
        return done >= set(tasks)

    host.wait(ended, f"the end of {tasks}")


# --- exceptions -------------------------------------------------------------------------------------------------------


def test_a_user_s_exception_arrives_as_itself_with_the_remote_traceback(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.fail, "this one")
        run_all(host, lane, 0)
        error = host.errors[0]
        assert type(error) is t.TaskError
        assert error.args == ("this one",)
        assert isinstance(error.__cause__, RemoteTraceback)
        text = str(error.__cause__)
        assert "in fail" in text
        assert "raise TaskError(message)" in text
        assert "worker.py" not in text  # none of our own frames


@pytest.mark.parametrize(
    ("fn", "kind", "message", "reason"),
    [
        (t.fail_unpicklable, t.LockedError, "holds a lock", "cannot pickle"),
        (t.fail_unloadable, t.UnloadableError, "wants a code", "missing 1 required positional argument"),
    ],
)
def test_an_exception_that_cannot_travel_is_made_anew(
    hosted: Any, fn: Any, kind: type, message: str, reason: str
) -> None:
    with hosted() as (host, lane):
        host.add(0, fn)
        run_all(host, lane, 0)
        assert type(host.errors[0]) is kind
        assert host.errors[0].args == (message,)
        assert f"in {fn.__name__}" in str(host.errors[0].__cause__)
        assert reason in str(host.errors[0].__cause__)


class HardKeyError(KeyError):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a)
        self.b = b


class HardUnicodeError(UnicodeDecodeError):
    def __reduce__(self) -> Any:
        raise TypeError("never")


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("mute")

    def __reduce__(self) -> Any:
        return len, ([],)


class HardOSError(OSError):
    def __init__(self, path: str, code: int) -> None:
        super().__init__(code, "no", path)


def revived(error: BaseException) -> BaseException:
    """What comes of it on its way from a worker."""
    try:
        raise error
    except BaseException as caught:
        return revive_failure(describe_failure(caught))


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (HardKeyError(1, 2), {"args": (1,), "b": 2}),
        (HardUnicodeError("utf-8", b"x", 0, 1, "why"), {"object": b"x", "end": 1, "reason": "why"}),
        (HardOSError("there", 2), {"errno": 2}),
        (MuteError("a", len), {"args": ("a", len)}),
        (HardKeyError(threading.main_thread, 2), {"b": 2}),
    ],
)
def test_an_exception_made_anew_has_all_that_can_travel(error: Exception, attributes: dict[str, Any]) -> None:
    found = revived(error)
    assert type(found) is type(error)
    assert {name: getattr(found, name) for name in attributes} == attributes
    assert isinstance(found.__cause__, RemoteTraceback)


class TwofoldError(ValueError, OSError):
    """Its memory is laid out as that of an OSError, which the first of its bases cannot make."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a)


def test_a_substitute_is_caught_by_the_same_except_clause() -> None:
    found = revived(TwofoldError(1, 2))
    assert isinstance(found, ValueError)
    assert "TwofoldError" in str(found)
    assert isinstance(found.__cause__, RemoteTraceback)


def test_causes_and_notes_are_in_the_text(hosted: Any) -> None:
    def chained() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    with hosted() as (host, lane):
        host.add(0, chained)
        run_all(host, lane, 0)
        assert type(host.errors[0]) is ValueError
        text = str(host.errors[0].__cause__)
        assert "KeyError: 'first'" in text
        assert "direct cause" in text


@pytest.mark.parametrize(
    ("fn", "kind"), [(t.raise_system_exit, SystemExit), (t.raise_keyboard_interrupt, KeyboardInterrupt)]
)
def test_exit_and_interrupt_are_failures_of_their_task_alone(hosted: Any, fn: Any, kind: type) -> None:
    with hosted() as (host, lane):
        host.add(0, fn)
        host.add(1, t.inc, 1)
        run_all(host, lane, 0, 1)
        assert type(host.errors[0]) is kind
        assert host.values[1] == 2
        assert not host.of(WorkerDied)


def test_recursion_and_memory_errors_are_ordinary_failures(hosted: Any) -> None:
    def deep(n: int) -> int:
        return deep(n + 1)

    with hosted() as (host, lane):
        host.add(0, deep, 0)
        host.add(1, bytearray, 1 << 62)
        host.add(2, t.inc, 1)
        run_all(host, lane, 0, 1, 2)
        assert type(host.errors[0]) is RecursionError
        assert type(host.errors[1]) is MemoryError


# --- side effects -----------------------------------------------------------------------------------------------------


def test_what_tasks_print_appears_at_once_even_if_the_worker_is_killed(
    hosted: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with hosted() as (host, lane):
        host.add(0, print, "to stdout")
        host.add(1, t.print_lines, "to stderr", error=True)
        host.add(2, t.crash, "sigkill")
        run_all(host, lane, 0, 1)
        lane.run(1, [2])
        lane.flush()
        host.next(WorkerDied)
        out, err = capfd.readouterr()
        assert out == "to stdout\n"
        assert err == "to stderr\n"


def test_workers_read_nothing_from_the_owner_s_stdin(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, lambda: sys.stdin.read())
        run_all(host, lane, 0)
        assert host.values[0] == ""


def test_tasks_may_fork(hosted: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def fork_and_come_back(how: str) -> int:
        """The child leaves the task as if it were the worker."""
        child = os.fork()
        if child == 0:
            if how == "raise":
                raise KeyError("in the child")
            return -1
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def run_child_process() -> int:
        process = multiprocessing.get_context("fork").Process(target=os._exit, args=(5,))
        process.start()
        process.join()
        return process.exitcode or 0

    with hosted() as (host, lane):
        host.add(0, t.fork_child, 7)
        host.add(1, fork_and_come_back, "return")
        host.add(2, fork_and_come_back, "raise")
        host.add(3, run_child_process)
        host.add(4, t.inc, 1)
        run_all(host, lane, 0, 1, 2, 3, 4)
        assert [host.values[i] for i in range(5)] == [7, 0, 1, 5, 2]
        assert "KeyError: 'in the child'" in capfd.readouterr().err


def test_tasks_may_start_threads_and_leave_them(hosted: Any) -> None:
    def leave_thread() -> bool:
        threading.Thread(target=threading.Event().wait, daemon=False).start()
        return True

    with hosted() as (host, lane):
        host.add(0, t.start_thread, 5)
        host.add(1, leave_thread)
        host.add(2, t.inc, 1)
        run_all(host, lane, 0, 1, 2)
        assert host.values == {0: 5, 1: True, 2: 2}
        lane.stop(1)
        lane.flush()
        assert host.next(WorkerDied) == WorkerDied(1, None, expected=True)
        assert lane.obituary(1)[0] == "exit code 0"


def test_tasks_may_change_directory_and_environment(hosted: Any, tmp_path: Path) -> None:
    (folder := tmp_path / "gone").mkdir()

    def clear_environment() -> None:
        os.environ.clear()

    with hosted() as (host, lane):
        host.add(0, t.change_directory, folder)
        host.add(1, os.rmdir, folder)
        host.add(2, clear_environment)
        host.add(3, t.inc, 1)
        host.add(4, t.make_array, 1 << 20, wanted=True)
        run_all(host, lane, 0, 1, 2, 3, 4)
        assert host.values[3] == 2
        host.wait(lambda: lane.store_status()["values"])
        assert lane.load(4).nbytes == 1 << 20


def test_in_worker_is_true_in_workers_only(hosted: Any) -> None:
    from headrace.lanes.processes.worker import in_worker

    with hosted() as (host, lane):
        host.add(0, in_worker)
        run_all(host, lane, 0)
        assert host.values[0] is True
        assert in_worker() is False
