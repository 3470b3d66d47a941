"""Ctrl-C in the owner, at every moment at which Python may call the handler of a signal."""

from __future__ import annotations

import dis
import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from headrace.lanes.processes.publications import Publications
from headrace.store.pickling import pack

SMALL_BYTES = 1000


def interrupted(moment: int, fn: Callable[..., Any], *args: Any) -> Any:
    """Calls ``fn``, with Ctrl-C at a moment counted from 0: handlers run as a function begins and after each call."""
    left = moment
    before: dict[FrameType, str] = {}

    def press(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        frame.f_trace_opcodes = True
        if event == "call" or (event == "opcode" and before.get(frame, "").startswith("CALL")):
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        if event == "opcode":
            before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
        return press

    gc.disable()  # it would call other tests' finalizers, where what is raised is lost
    sys.settrace(press)
    try:
        return fn(*args)
    finally:
        sys.settrace(None)
        gc.enable()
        before.clear()


def nothing(*_: Any) -> None:
    pass


@pytest.mark.parametrize("size", [10_000, 1_000_000])  # copied, mapped
def test_a_load_answers_once_whenever_it_is_interrupted(size: int) -> None:
    books = Publications(SMALL_BYTES, nothing, nothing)
    try:
        moment, whole = 0, False
        while not whole:
            books.publish_here(moment, pack(bytes(size)))
            try:
                whole = interrupted(moment, books.load, moment) == bytes(size)
            except KeyboardInterrupt:
                pass
            books.release([moment])
            books.release([])  # notices what ended with the first
            assert books.status() == {"published_bytes": 0, "values": 0, "segments": 0}, f"after moment {moment}"
            books.check()
            moment += 1
        assert moment > 30
    finally:
        books.close()
