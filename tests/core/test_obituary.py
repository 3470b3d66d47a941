"""How a process ended, in words."""

from __future__ import annotations

import signal

import pytest

from headrace.obituary import describe_exit


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exit code 0"),
        (3, "exit code 3"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (-(signal.SIGRTMIN + 1), "killed by signal 35"),
    ],
)
def test_an_end_is_described(code: int, words: str) -> None:
    assert describe_exit(code) == words
