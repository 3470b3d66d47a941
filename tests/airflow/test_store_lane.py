"""The I/O process behind the service: what hangs, dies or errs in it reaches whoever asked."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from headrace_airflow.store import image, lane
from headrace_airflow.store.lane import HelperLane
from headrace_airflow.store.settings import StoreSettings
from headrace_airflow.wire import Message

WITHIN_S = 30.0


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[HelperLane]:
    settings = StoreSettings(str(tmp_path / "node"), str(tmp_path / "xcom"), str(tmp_path / "spill"), 1 << 20)
    found = HelperLane("writer-test", settings)
    yield found
    found.close()


def write_job(path: Path) -> tuple[Message, int]:
    data = image.table([4]).ljust(64, b"\0") + b"data"
    fd = os.memfd_create("test")
    os.pwrite(fd, data, 0)
    return {"do": "write", "url": str(path), "size": len(data), "info": {"id": path.name}}, fd


def run_until(writer: HelperLane, is_done: Callable[[], bool]) -> None:
    """What the service's loop does."""
    for _ in range(int(WITHIN_S / 0.05)):
        if writer.channel is not None:
            poll = select.poll()
            poll.register(writer.channel, select.POLLIN | (select.POLLOUT if writer.channel.unsent else 0))
            if poll.poll(50):
                writer.handle()
        writer.look()
        if is_done():
            return
    raise TimeoutError


def process_of(writer: HelperLane) -> psutil.Process:
    (found,) = [child for child in psutil.Process().children() if "writer-test" in child.cmdline()]
    return found


def test_jobs_are_done_in_order_and_answered_once(writer: HelperLane, tmp_path: Path) -> None:
    heard: list[tuple[str, Message]] = []
    for name in ("a", "b"):
        writer.submit(*write_job(tmp_path / name), lambda message, fds, name=name: heard.append((name, message)))
    writer.submit({"do": "erase", "url": str(tmp_path / "a")}, None, lambda message, fds: heard.append(("-a", message)))
    assert writer.busy == 3
    run_until(writer, lambda: not writer.busy)
    assert [name for name, _ in heard] == ["a", "b", "-a"]
    assert all(lane.error_of(message) is None for _, message in heard)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["b"]


def test_an_error_is_an_answer_and_the_process_goes_on(writer: HelperLane, tmp_path: Path) -> None:
    heard: list[str | None] = []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "below", tmp_path / "good"):
        writer.submit(*write_job(path), lambda message, fds: heard.append(lane.error_of(message)))
    writer.submit({"do": "no such"}, None, lambda message, fds: heard.append(lane.error_of(message)))
    run_until(writer, lambda: not writer.busy)
    assert heard[0] is not None
    assert "NotADirectoryError" in heard[0] or "FileExistsError" in heard[0]
    assert heard[1] is None
    assert heard[2] is not None


def test_a_process_that_dies_is_replaced_at_the_next_job(writer: HelperLane, tmp_path: Path) -> None:
    heard: list[str | None] = []
    writer.submit(*write_job(tmp_path / "first"), lambda message, fds: heard.append(lane.error_of(message)))
    run_until(writer, lambda: not writer.busy)
    process = process_of(writer)
    process.suspend()
    writer.submit(*write_job(tmp_path / "second"), lambda message, fds: heard.append(lane.error_of(message)))
    process.kill()
    run_until(writer, lambda: not writer.busy)
    assert heard == [None, "the I/O process ended (exit code -9)"]
    writer.submit(*write_job(tmp_path / "third"), lambda message, fds: heard.append(lane.error_of(message)))
    run_until(writer, lambda: not writer.busy)
    assert heard[2] is None
    assert (tmp_path / "third").exists()


def test_storage_that_hangs_is_given_up(writer: HelperLane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str | None] = []
    writer.submit(*write_job(tmp_path / "first"), lambda message, fds: heard.append(lane.error_of(message)))
    run_until(writer, lambda: not writer.busy)
    process_of(writer).suspend()  # as a process is that waits for a network file system
    monkeypatch.setattr(lane, "_PATIENCE_S", 0.2)
    writer.submit(*write_job(tmp_path / "second"), lambda message, fds: heard.append(lane.error_of(message)))
    run_until(writer, lambda: not writer.busy)
    assert heard[1] is not None
    assert heard[1].startswith("storage did not answer in time")
