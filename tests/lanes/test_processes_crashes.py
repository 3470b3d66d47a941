"""What the processes lane says when workers die, and that nothing outlives the owner."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace import testing as t
from headrace.errors import UnpicklableError
from headrace.lanes.processes.publications import Publications
from headrace.sched.events import TaskRaised, TasksRevoked, TaskUnpicklable, ValuePublished, WorkerDied, WorkerRan

DEATHS = {"c_exit": f"exit code {t.CRASH_EXIT_CODE}", "segfault": "killed by SIGSEGV", "sigkill": "killed by SIGKILL"}


def run(host: Any, lane: Any, worker: int, *tasks: int) -> None:
    lane.run(worker, tasks)
    lane.flush()


# --- loky's matrix: {unpickle argument, run, pickle result, unpickle result} x {exit, C exit, segfault, SIGKILL, raise}


def add_culprit(host: Any, stage: str, how: Any, log: Path, spare: int = 0) -> None:
    if stage == "unpickle argument":
        host.add(1, t.identity, t.CrashAtUnpickle(how, log, spare=spare), wanted=True)
    elif stage == "run":
        host.add(1, t.crash, how, wanted=True)
    else:
        host.add(1, t.make_crash_at_pickle, how, log, times=2, spare=spare, wanted=True)


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("stage", ["unpickle argument", "run", "pickle result"])
def test_a_death_is_laid_to_exactly_the_task_at_fault(hosted: Any, tmp_path: Path, stage: str, how: str) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.inc, 0)
        add_culprit(host, stage, how, tmp_path / "log")
        host.add(2, t.inc, 2)
        run(host, lane, 1, 0, 1, 2)
        assert host.next(WorkerDied) == WorkerDied(1, running=1)
        reason, rss_bytes = lane.obituary(1)
        assert reason == DEATHS[how]
        assert rss_bytes < 1 << 30
        assert not host.errors
        run(host, lane, 2, 2)  # others are untouched
        host.ran(2)
        assert [s["worker"] for s in lane.status()] == [2]


@pytest.mark.parametrize("how", ["exit", "raise"])
@pytest.mark.parametrize("stage", ["unpickle argument", "run", "pickle result"])
def test_what_raises_fails_the_task_and_not_the_worker(hosted: Any, tmp_path: Path, stage: str, how: str) -> None:
    with hosted() as (host, lane):
        add_culprit(host, stage, how, tmp_path / "log")
        host.add(2, t.inc, 2)
        run(host, lane, 1, 1, 2)
        host.ran(2)
        if (stage, how) == ("pickle result", "raise"):
            assert host.next(TaskUnpicklable) == TaskUnpicklable(1, 1)
            assert isinstance(host.errors[1], UnpicklableError)
            assert "crashed on purpose" in str(host.errors[1].__cause__)
        else:
            kind = TaskUnpicklable if stage == "unpickle argument" else TaskRaised
            assert host.next(kind) == kind(1, 1)
            assert type(host.errors[1]) is (SystemExit if how == "exit" else t.TaskError)
        assert not host.of(WorkerDied)


@pytest.mark.parametrize("how", ["exit", "raise"])
def test_what_raises_when_the_owner_unpickles_a_result_fails_the_task(hosted: Any, tmp_path: Path, how: Any) -> None:
    with hosted() as (host, lane):
        host.add(1, t.make_crash_at_unpickle, how, tmp_path / "log", wanted=True)
        host.add(2, t.inc, 2)
        run(host, lane, 1, 1, 2)
        host.ran(2)
        assert host.next(TaskUnpicklable) == TaskUnpicklable(1, 1)
        assert type(host.errors[1]) is (SystemExit if how == "exit" else t.TaskError)
        assert "The result of task task-1 has come" in str(host.errors[1].__cause__)


@pytest.mark.parametrize("how", DEATHS)
def test_a_result_that_kills_who_reads_it_is_laid_to_the_reader(hosted: Any, tmp_path: Path, how: Any) -> None:
    with hosted(2) as (host, lane):
        host.add(1, t.make_crash_at_unpickle, how, tmp_path / "log")
        host.add(2, t.identity, None, holes=((0, 1),), wanted=True)
        run(host, lane, 1, 1)
        host.ran(1)
        lane.publish(1, 1)
        lane.flush()
        host.next(ValuePublished)
        run(host, lane, 2, 2)
        assert host.next(WorkerDied) == WorkerDied(2, running=2)
        assert lane.obituary(2)[0] == DEATHS[how]


@pytest.mark.parametrize("how", DEATHS)
def test_a_death_while_publishing_is_laid_to_the_task_that_made_the_value(
    hosted: Any, tmp_path: Path, how: Any
) -> None:
    with hosted() as (host, lane):
        host.add(1, t.make_crash_at_pickle, how, tmp_path / "log", times=9)
        host.add(2, t.hold, tmp_path)
        run(host, lane, 1, 1, 2)
        t.wait_for_start(tmp_path)
        lane.publish(1, 1)
        lane.flush()
        assert host.next(WorkerDied) == WorkerDied(1, running=1)


# --- deaths from outside ----------------------------------------------------------------------------------------------


def test_an_idle_worker_s_death_blames_nobody(hosted: Any) -> None:
    with hosted() as (host, lane):
        host.add(0, t.inc, 1)
        run(host, lane, 1, 0)
        host.ran(0)
        os.kill(lane.status()[0]["pid"], signal.SIGTERM)
        assert host.next(WorkerDied) == WorkerDied(1, None)
        assert lane.obituary(1)[0] == "killed by SIGTERM"


def test_everything_that_a_worker_has_said_is_heard_before_its_death(hosted: Any) -> None:
    with hosted() as (host, lane):
        for i in range(2000):
            host.add(i, t.inc, i)
        host.add(2000, t.crash, "sigkill")
        link = lane._peers[1].link
        process = psutil.Process(link.process.pid)

        def see_only_the_death() -> None:
            """Keeps the io thread until the worker is dead, and from looking at the socket before that."""
            t.wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
            lane._io._selector.unregister(link.channel)

        lane._io.ask(see_only_the_death)
        run(host, lane, 1, *range(2001))
        assert host.next(WorkerDied) == WorkerDied(1, running=2000)
        told = {s.task for e in host.of(WorkerRan) for s in e.spans}
        assert told == set(host.values)
        assert len(told) >= 2000 - 256  # the last ones may not have been sent
        assert host.story()[-1] == "WorkerDied"


def reset_peak() -> int:
    """Forgets the peak of this process's resident memory, which a worker would inherit; gives the present one."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not allowed, as in some containers
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_the_obituary_tells_the_memory_that_the_worker_had(hosted: Any) -> None:
    with hosted() as (host, lane):
        size = max(reset_peak(), 100 << 20) + (200 << 20)
        host.add(0, t.make_bytes, size)
        host.add(1, t.crash, "sigkill")
        run(host, lane, 1, 0, 1)
        host.next(WorkerDied)
        assert size <= lane.obituary(1)[1] < 2 * size + (200 << 20)


def test_a_worker_that_cannot_be_heard_is_ended(hosted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the owner has no descriptor left for the memory in which the results are."""

    def refuse(_self: Publications, _place: int, fd: int) -> None:
        os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Publications, "attach", refuse)
    told: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: told.append(kind))
    with hosted() as (host, lane):
        host.add(0, t.make_array, 300_000, wanted=True)
        host.add(1, t.make_array, 300_000, wanted=True)
        run(host, lane, 1, 0, 1)
        assert host.next(WorkerDied) == WorkerDied(1, running=0)
        assert "could not be read: [Errno 24] Too many open files" in lane.obituary(1)[0]
        assert not host.values
    assert told == [OSError]


def test_without_shared_memory_a_task_may_run_here(hosted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with hosted() as (host, lane):
        host.add(0, resource.setrlimit, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        host.execute(lane, 1, 0)
        host.add(1, t.make_array, 300_000, wanted=True)
        run(host, lane, 1, 1)
        assert host.next(TaskUnpicklable) == TaskUnpicklable(1, 1)
        assert isinstance(host.errors[1], OSError)

        def refuse(*_: Any) -> None:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

        monkeypatch.setattr(Publications, "lend", refuse)
        host.add(2, t.identity, bytes(300_000))
        run(host, lane, 1, 2)
        assert host.next(TaskUnpicklable, task=2) == TaskUnpicklable(2, 1)
        assert isinstance(host.errors[2], OSError)


def test_workers_can_be_killed_at_any_moment(hosted: Any) -> None:
    """Many short lives: descriptors, books and the other worker stay right (the fixtures look)."""
    with hosted(0) as (host, lane):
        for life in range(1, 25):
            lane.launch([life])
            lane.flush()
            for i in range(50):
                host.add(life * 100 + i, t.make_array, 50_000 + i * 8, wanted=True)
            lane.run(life, range(life * 100, life * 100 + 50))
            lane.flush()
            time.sleep(0.004 * (life % 12))  # where in its life it dies is the point, and nothing depends on it
            lane.stop(life, kill=True)
            host.next(WorkerDied, worker=life)
            for event in host.of(ValuePublished):
                if event.worker == life:
                    assert lane.load(event.task).nbytes // 8 * 8 >= 50_000
                    lane.release([event.task])
        assert lane.status() == []
        assert lane.store_status()["values"] == 0


def test_orders_for_a_dead_worker_are_harmless(hosted: Any) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.inc, 1)
        os.kill(lane.status()[0]["pid"], signal.SIGKILL)
        for _ in range(50):
            lane.run(1, [0])
            lane.publish(1, 0)
            lane.revoke(1, [0])
            lane.drop(1, [0])
            lane.flush()
        host.next(WorkerDied, worker=1)
        lane.run(1, [0])
        lane.stop(1, kill=True)
        lane.flush()
        run(host, lane, 2, 0)
        host.ran(0)


def test_what_tasks_have_started_dies_with_the_worker(hosted: Any) -> None:
    def spawn_sleeper() -> int:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid  # until it is killed

    with hosted() as (host, lane):
        host.add(0, spawn_sleeper, wanted=True)
        host.add(1, t.crash, "sigkill")
        run(host, lane, 1, 0)
        host.ran(0)
        child = psutil.Process(host.values[0])
        run(host, lane, 1, 1)
        host.next(WorkerDied)
        t.wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


# --- the owner's end --------------------------------------------------------------------------------------------------

OWNER = """
    import os, sys, time
    sys.path.insert(0, {folder!r})
    import conftest as hosting
    from headrace import testing as t
    with hosting._hosted(2) as (host, lane):
        for worker, fn, args in ((1, {fn}, {args}), (2, t.hold, ({directory!r},))):
            host.add(worker, fn, *args)
            lane.run(worker, [worker])
        lane.flush()
        t.wait_for_start({directory!r})
        print(*[status["pid"] for status in lane.status()], flush=True)
        {end}
"""


UNTIL_KILLED = "time.sleep(60)"
"""An owner's end, or a child's, that nobody waits for."""


def owner(tmp_path: Path, fn: str, args: str, end: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    folder = str(Path(__file__).parent)
    program = textwrap.dedent(OWNER.format(folder=folder, fn=fn, args=args, directory=str(tmp_path), end=end))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    return process, workers


def is_stopped(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return all((thread / "stat").read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


START_A_CHILD = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # until it is killed
with open({0!r} + ".new", "w") as file:
    file.write(str(child.pid))
os.rename({0!r} + ".new", {0!r})
child.wait()
"""


def owner_of_a_child(tmp_path: Path) -> tuple[subprocess.Popen[str], list[psutil.Process], psutil.Process]:
    """As ``owner``, and what a task there has started."""
    pid = tmp_path / "pid"
    process, workers = owner(tmp_path, "exec", f"({START_A_CHILD.format(str(pid))!r},)", end=UNTIL_KILLED)
    t.wait_until(pid.exists)
    return process, workers, psutil.Process(int(pid.read_text()))


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize(
    ("fn", "args"),
    [("sum", "(range(10**12),)"), ("t.slow", "(1, 60)"), ("t.burn", "(10**12,)")],
    ids=["C", "sleep", "Python"],
)
def test_workers_are_gone_within_a_second_when_the_owner_is_killed(tmp_path: Path, fn: str, args: str) -> None:
    process, workers = owner(tmp_path, fn, args, end=UNTIL_KILLED)
    process.kill()
    process.communicate()
    t.wait_until(lambda: gone(workers), "the workers' end", timeout_s=1.0)


def test_workers_are_gone_when_the_owner_ends_without_closing(tmp_path: Path) -> None:
    process, workers = owner(tmp_path, "sum", "(range(10**12),)", end="os._exit(0)")
    process.communicate()
    t.wait_until(lambda: gone(workers), "the workers' end", timeout_s=1.0)


def test_workers_are_gone_even_if_a_forked_child_of_the_owner_lives_on(tmp_path: Path) -> None:
    end = "child = os.fork(); child or (time.sleep(60), os._exit(0)); print(child, flush=True); " + UNTIL_KILLED
    process, workers = owner(tmp_path, "sum", "(range(10**12),)", end=end)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        t.wait_until(lambda: gone(workers), "the workers' end", timeout_s=1.0)
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_what_tasks_have_started_does_not_outlive_the_owner(tmp_path: Path) -> None:
    process, workers, child = owner_of_a_child(tmp_path)
    process.kill()
    t.wait_until(lambda: gone([*workers, child]), "the end of all", timeout_s=1.0)
    process.communicate()


def test_what_tasks_have_started_does_not_outlive_the_owner_though_the_worker_dies_first(tmp_path: Path) -> None:
    """The kernel ends the owner's threads before it closes its files, and a worker ends with the thread that started
    it."""
    process, workers, child = owner_of_a_child(tmp_path)
    try:
        process.send_signal(signal.SIGSTOP)  # it shall not see the death of its workers
        t.wait_until(lambda: is_stopped(process.pid))
        for worker in workers:
            worker.kill()
        t.wait_until(lambda: gone(workers))
        assert not gone([child])
        process.kill()
        t.wait_until(lambda: gone([child]), "the child's end", timeout_s=1.0)
    finally:
        process.kill()
        if not gone([child]):
            child.kill()
        process.communicate()


def test_close_kills_what_runs_and_may_be_repeated(hosted: Any, tmp_path: Path) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.hold, tmp_path)
        run(host, lane, 1, 0)
        t.wait_for_start(tmp_path)
        before = time.monotonic()
        lane.close()
        lane.close()
        assert time.monotonic() - before < 2
        run(host, lane, 1, 0)
        lane.launch([3])
        lane.flush()
        assert lane.status() == []
        assert not host.of(TasksRevoked)


# --- interruptions and forks of the owner -----------------------------------------------------------------------------


class InterruptAtPickle:
    """As if Ctrl-C came while it is pickled."""

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_ctrl_c_while_sending_costs_the_worker_but_no_other_task(hosted: Any) -> None:
    with hosted(2) as (host, lane):
        host.add(0, t.inc, 0)
        host.add(1, t.identity, InterruptAtPickle())
        host.add(2, t.inc, 2)
        lane.run(1, [0, 1, 2])
        lane.run(2, [0])
        with pytest.raises(KeyboardInterrupt):
            lane.flush()
        # Nobody knows what worker 1 was told: it is gone, so that its tasks can run elsewhere.
        assert host.next(WorkerDied) == WorkerDied(1, None, expected=True)
        run(host, lane, 2, 2)
        host.ran(0, 2)


def test_a_forked_child_of_the_owner_leaves_the_lane_alone(hosted: Any) -> None:
    with hosted() as (_, closed_before):
        pass
    with hosted() as (host, lane):
        host.add(0, t.make_array, 1 << 20, wanted=True)
        run(host, lane, 1, 0)
        host.next(ValuePublished)
        host.add(1, t.inc, 1)
        child = os.fork()
        if child == 0:
            try:
                lane.run(1, [1])
                lane.flush()
                lane.close()
                sockets = [n for n in os.listdir("/proc/self/fd") if is_lane_descriptor(f"/proc/self/fd/{n}")]
                os._exit(len(sockets))
            finally:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert closed_before.status() == []
        run(host, lane, 1, 1)
        host.ran(1)
        assert lane.load(0).nbytes == 1 << 20


def is_lane_descriptor(path: str) -> bool:
    try:
        target = os.readlink(path)
    except OSError:
        return False
    return target.startswith(("/memfd:headrace ", "/memfd:headrace-page ")) or "pidfd" in target


def test_a_lane_that_never_started_a_worker_closes_cleanly(hosted: Any) -> None:
    with hosted(0) as (host, lane):
        lane.flush()
        assert lane.status() == []
    assert host.events == []
