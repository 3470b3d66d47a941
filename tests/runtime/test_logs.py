"""What tasks log reaches the handlers of the process that computes, and its levels reach the tasks."""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from headrace.graph import Graph
from headrace.lanes.processes import logged
from headrace.runtime import Runtime


class Odd:
    """Cannot travel; its text can."""

    def __str__(self) -> str:
        return "odd"

    def __reduce__(self) -> Any:
        raise TypeError("stays here")


class Level(enum.IntEnum):
    LOW = 15
    HIGH = 45


class Part(str, enum.Enum):
    LOADER = "headrace.tests.loader"


class Text(str):
    """Cannot be marshalled, as a ``str`` can."""


class LazyText:
    def __str__(self) -> str:
        return Text("shown late")


def log(name: str, level: int) -> int:
    logging.getLogger(name).log(level, "seen by %s", Odd())
    return level


def log_lazily() -> None:
    logging.getLogger("headrace.tests").warning(LazyText())


def log_exception() -> None:
    try:
        raise ValueError("lost")
    except ValueError:
        logging.getLogger("headrace.tests").exception("caught")


def run(rt: Runtime, fn: Any, *args: Any) -> None:
    rt.run(Graph(["log"], [(fn, args, None, ())], [()], ["log"], outputs=[0]))


@pytest.fixture(params=["threads", "processes"])
def rt(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    with Runtime(lane=request.param, num_workers=1) as rt:
        yield rt


def test_handlers_see_them(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    run(rt, log, "headrace.tests", logging.WARNING)
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("headrace.tests", "WARNING", "seen by odd")
    ]
    assert caplog.records[0].funcName == "log"


def test_the_text_is_of_a_subclass_of_str(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    run(rt, log_lazily)
    assert [record.getMessage() for record in caplog.records] == ["shown late"]


def test_levels_follow(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    run(rt, log, "headrace.tests.sub", logging.DEBUG)
    with caplog.at_level(logging.DEBUG, "headrace.tests"):
        run(rt, log, "headrace.tests.sub", logging.DEBUG)
        run(rt, log, "headrace.others", logging.DEBUG)
    run(rt, log, "headrace.tests.sub", logging.DEBUG)
    assert [record.name for record in caplog.records] == ["headrace.tests.sub"]


def test_levels_and_names_may_be_members_of_enumerations(
    rt: Runtime, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root.manager, "disable", Level.LOW)
    caplog.set_level(Level.LOW)
    caplog.set_level(Level.HIGH, Part.LOADER)
    run(rt, log, Part.LOADER, logging.ERROR)
    run(rt, log, Part.LOADER, Level.HIGH)
    assert [(record.name, record.levelno) for record in caplog.records] == [("headrace.tests.loader", 45)]


def test_traceback_comes_along(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    run(rt, log_exception)
    assert "ValueError: lost" in caplog.text


def test_own_handler_of_a_logger(rt: Runtime) -> None:
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    logger, handler = logging.getLogger("headrace.tests.own"), Handler()
    logger.addHandler(handler)
    logger.propagate = False
    try:
        run(rt, log, logger.name, logging.ERROR)
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
    assert seen == ["seen by odd"]


def test_those_of_futures(caplog: pytest.LogCaptureFixture) -> None:
    with Runtime(lane="processes", num_workers=1) as rt:
        assert rt.submit(log, "headrace.tests", logging.ERROR).result() == logging.ERROR
    assert caplog.messages == ["seen by odd"]


def test_equal_levels_are_equal_states() -> None:
    assert logged._state() == logged._state()
