"""The error tree: every branch, what it can be caught as, and that each error survives the way between processes."""

from __future__ import annotations

import inspect
import pickle
import traceback

import pytest

from headrace import errors

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == "headrace.errors"]


def drawn_tree() -> set[tuple[str, str]]:
    """(parent, child) for each branch of the tree that the module's docstring draws."""
    lines = (errors.__doc__ or "").split("::\n\n")[1].split("\n\n")[0].splitlines()
    above: dict[int, str] = {}
    branches = set()
    for line in lines:
        name = line.strip(" │├└─").split()[0]
        column = line.index(name)
        if column - 4 in above:
            branches.add((above[column - 4], name))
        above[column] = name
    return branches


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    real = {(parent.__name__, child.__name__) for child in CLASSES for parent in child.__bases__ if parent in CLASSES}
    assert drawn_tree() == real


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (errors.CycleError, RuntimeError),
        (errors.MissingKeyError, KeyError),
        (errors.UnpicklableError, TypeError),
        (errors.WorkerDied, RuntimeError),
    ],
)
def test_errors_can_be_caught_as_what_people_expect(error: type[Exception], also: type[Exception]) -> None:
    assert issubclass(error, also)
    assert issubclass(error, errors.HeadraceError)


def test_the_three_branches_do_not_meet() -> None:
    branches = (errors.UserError, errors.WorkerDied, errors.InternalError)
    for error in CLASSES:
        assert sum(issubclass(error, branch) for branch in branches) <= 1


def test_a_missing_key_prints_its_sentence_without_quotes() -> None:
    assert str(errors.MissingKeyError("nothing makes 'x'")) == "nothing makes 'x'"
    assert str(errors.MissingKeyError()) == ""


def test_a_worker_death_tells_task_attempts_reason_and_memory() -> None:
    error = errors.WorkerDied("fit-0", 3, "killed by SIGSEGV", 512 * 2**20)
    assert (error.task, error.attempts, error.reason, error.rss_bytes) == ("fit-0", 3, "killed by SIGSEGV", 512 * 2**20)
    for part in ("fit-0", "3 worker", "SIGSEGV", "512 MiB"):
        assert part in str(error)
    assert "memory" not in str(errors.WorkerDied("fit-0", 1, "exit code 3"))


def test_when_no_worker_could_be_started_no_task_is_blamed() -> None:
    text = str(errors.WorkerDied("fit-0", 3, "not started: no process is left"))
    assert text.startswith("task fit-0 was given up because no worker process could be started for it, in 3 attempt(s)")
    assert "no process is left" in text
    assert "took down" not in text


@pytest.mark.parametrize(
    "error",
    [errors.WorkerDied("a", 2, "exit code 3", 5)]
    + [c("the message") for c in CLASSES if c is not errors.WorkerDied and issubclass(c, Exception)],
    ids=lambda error: type(error).__name__,
)
def test_every_error_pickles(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_remote_traceback_shows_its_text_as_the_cause() -> None:
    error = ValueError("wrong")
    error.__cause__ = errors.RemoteTraceback("Traceback of the worker\n  in there")
    shown = "".join(traceback.format_exception(error))
    assert "Traceback of the worker\n  in there" in shown
    assert shown.rstrip().endswith("ValueError: wrong")
