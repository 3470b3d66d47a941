"""Streams in lane ``processes``: each stage has a process of its own, and they run side by side."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from moved_stages import (
    OnlyHere,
    arrays,
    die_once,
    endless_arrays,
    fail_only_here,
    frames_of,
    largest_of,
    made_by,
    only_here,
    pids_of,
    released_by,
    scaled,
    slowly,
    total_of,
    wait_for,
    warned_and_logged,
    with_lock,
    with_pid,
)

import headrace
from headrace.errors import MustStayHere, UnpicklableError, WorkerDied
from headrace.lanes.stages import pool
from headrace.lanes.stages.process import StageProcess
from headrace.runtime import Runtime
from headrace.store.pickling import register_reducer
from headrace.testing import wait_until

TIMEOUT_S = 60.0


@pytest.fixture
def rt() -> Iterator[Runtime]:
    with Runtime(lane="processes", num_workers=2, check=True) as runtime:
        yield runtime


def test_every_stage_has_a_process(rt: Runtime) -> None:
    for _ in range(2):  # found out, and known
        total, makers, reader = rt.submit(pids_of, rt.submit(with_pid, rt.submit(slowly, 20))).result(TIMEOUT_S)
        assert total == sum(range(20))
        assert len({*makers, reader, os.getpid()}) == 3


def test_a_consumer_reads_while_its_producer_goes_on(rt: Runtime, tmp_path: Path) -> None:
    """The producer ends only when the consumer has told it that it has read the first item."""
    read = tmp_path / "read"
    assert rt.submit(released_by, rt.submit(wait_for, read), read).result(TIMEOUT_S) == [0, 1]


def test_a_function_that_returns_a_generator_is_a_stage(rt: Runtime) -> None:
    total, makers, reader = rt.submit(pids_of, rt.submit(made_by, 20)).result(TIMEOUT_S)
    assert (total, len({*makers, reader, os.getpid()})) == (sum(range(20)), 3)


def test_large_items_go_from_process_to_process(rt: Runtime) -> None:
    stage = rt.submit(scaled, rt.submit(arrays, 40))
    assert rt.submit(total_of, stage).result(TIMEOUT_S) == 2 * sum(range(40))
    assert sum(int(item[0]) for item in stage.result(TIMEOUT_S)) == 2 * sum(range(40))
    largest = rt.submit(largest_of, rt.submit(arrays, 5)).result(TIMEOUT_S)
    assert (largest.shape, int(largest.max())) == ((100_000,), 4)


def test_the_caller_has_large_items_and_may_pickle_the_stream(rt: Runtime) -> None:
    stream = rt.submit(arrays, 6).result(TIMEOUT_S)
    assert [int(item[-1]) for item in stream] == list(range(6))
    assert (len(stream), int(stream[2][0]), int(stream[-1][0])) == (6, 2, 5)
    assert [int(item[0]) for item in pickle.loads(pickle.dumps(stream))] == list(range(6))


def test_memory_is_used_again(rt: Runtime) -> None:
    """80 MB pass through a buffer of 1 MB: neither process keeps more than what is on its way."""
    with Runtime(lane="processes", stream_buffer_bytes=1_000_000) as small:
        assert max(small.submit(frames_of, small.submit(arrays, 100)).result(TIMEOUT_S)) < 20_000_000
    stream = rt.submit(endless_arrays).result(TIMEOUT_S)
    assert int(next(stream)[0]) == 0
    stream.close()


def test_a_death_in_the_midst_of_large_items(rt: Runtime, tmp_path: Path) -> None:
    stage = rt.submit(die_once, rt.submit(arrays, 30), tmp_path / "died", 15)
    assert [int(item[0]) for item in stage.result(TIMEOUT_S)] == list(range(30))
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("deaths", [2, 3])
def test_a_death_before_a_process_is_up(rt: Runtime, deaths: int, monkeypatch: pytest.MonkeyPatch) -> None:
    died: list[int] = []

    class Short(StageProcess):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            if len(died) < deaths:
                self.kill()
                died.append(1)

    monkeypatch.setattr(pool, "StageProcess", Short)
    total = rt.submit(sum, rt.submit(slowly, 20))
    if deaths < rt.settings.max_deaths:
        assert total.result(TIMEOUT_S) == sum(range(20))
    else:
        with pytest.raises(WorkerDied, match="no worker process could be started"):
            total.result(TIMEOUT_S)


def test_what_cannot_be_pickled_is_an_error(rt: Runtime) -> None:
    stage = rt.submit(with_lock, rt.submit(slowly, 3))
    with pytest.raises(UnpicklableError, match="lock"):
        list(stage.result(TIMEOUT_S))


def test_what_cannot_be_unpickled_is_an_error(rt: Runtime) -> None:
    with pytest.raises(UnpicklableError, match=r"cannot be unpickled: TypeError.*Task only_here"):
        list(rt.submit(only_here, rt.submit(slowly, 3)).result(TIMEOUT_S))


def test_a_failure_that_cannot_be_pickled_reaches_consumers(rt: Runtime) -> None:
    for consumer in (sum, with_pid):
        stage = rt.submit(consumer, rt.submit(fail_only_here, rt.submit(slowly, 3)))
        with pytest.raises(OnlyHere, match="5"):
            rt.submit(list, stage).result(TIMEOUT_S)


def test_a_stage_that_cannot_be_pickled_is_an_error(rt: Runtime) -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise TypeError("stubborn")

    stubborn = Stubborn()
    with pytest.raises(UnpicklableError, match="stubborn"):
        rt.submit(lambda items: (sum(items), stubborn), rt.submit(slowly, 5)).result(TIMEOUT_S)


def test_what_must_stay_takes_no_process(rt: Runtime) -> None:
    class Rooted:
        pass

    def refuse(rooted: Rooted) -> Any:
        raise MustStayHere("rooted")

    register_reducer(Rooted, refuse)
    assert rt.submit(lambda rooted: (type(rooted), os.getpid()), Rooted()).result(TIMEOUT_S) == (Rooted, os.getpid())
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not any("lanes.stages" in command for command in commands)


def test_what_stages_say_is_heard_here(rt: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(UserWarning, match="half way"):
        assert list(rt.submit(warned_and_logged, rt.submit(slowly, 2)).result(TIMEOUT_S)) == [0, 1]
    wait_until(lambda: "done" in caplog.text, "what was logged", TIMEOUT_S)


def test_idle_processes_end() -> None:
    with Runtime(lane="processes", num_workers=2, idle_timeout_s=0.1) as rt:
        pids = {pid for _, pid in rt.submit(with_pid, rt.submit(slowly, 3)).result(TIMEOUT_S)}
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "their end", TIMEOUT_S)
        assert sum(rt.submit(slowly, 3).result(TIMEOUT_S)) == 3


def test_processes_are_gone_even_if_a_forked_child_of_the_owner_lives_on() -> None:
    script = textwrap.dedent("""
        import os, time
        from headrace import Runtime

        def pids():
            while True:
                yield os.getpid()

        runtime = Runtime(lane="processes", num_workers=1)
        stream = runtime.submit(pids).result()
        pid = next(stream)
        child = os.fork()
        if child:
            assert next(stream) == pid  # nothing that the child has closed was the owner's
            print(pid, child, flush=True)
        time.sleep(60)  # both are killed
    """)
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    stage, child = map(psutil.Process, map(int, owner.stdout.readline().split()))
    try:
        assert stage.pid != owner.pid
        owner.kill()
        owner.wait()
        wait_until(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE, "the stage's end", 1.0)
    finally:
        for process in (owner, child, stage):
            if process is owner or process.is_running():
                process.kill()
        owner.communicate()


def test_asynchronous_and_marked_ones(rt: Runtime) -> None:
    async def numbers() -> Any:
        for number in range(5):
            yield number

    assert rt.submit(sum, rt.submit(numbers)).result(TIMEOUT_S) == 10
    assert rt.submit(sum, rt.submit(lambda: headrace.streamed(range(5)))).result(TIMEOUT_S) == 10
