"""The status of every runtime on this machine, as ``headrace status`` shows it.

It crosses processes without a socket or a file: each process that has a runtime keeps a JSON text in an anonymous
memfd, and a reader of the same user finds it as ``/proc/<pid>/fd/<n>``. So nothing listens, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import threading
import time
import weakref
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from headrace.sched.policy import KIND_NAMES
from headrace.sched.state import STATE_NAMES

if TYPE_CHECKING:
    from headrace.config import Settings
    from headrace.engine import Engine
    from headrace.lanes.processes.lane import ProcessLane
    from headrace.sched.machine import Machine
    from headrace.sched.state import Task

STATUS_NAME = "headrace-status"
REFRESH_S = 0.25
_LOOK_AGAIN_S = 0.01
SHOWN_TASKS = 50
COUNTED_TASKS = 20_000
"""The status is taken under the runtime's lock: of a very large graph only the first tasks are looked at."""


def snapshot(
    machine: Machine, settings: Settings, key_of: Callable[[int], str], lane: ProcessLane | None
) -> dict[str, Any]:
    """What runs where, what each waiting task waits for, and what the store holds. Called under the runtime's lock."""
    tasks = list(islice(machine.tasks.values(), COUNTED_TASKS))
    counts = dict.fromkeys(STATE_NAMES, 0)
    for task in tasks:
        counts[STATE_NAMES[task.state]] += 1
    return {
        "pid": os.getpid(),
        "settings": {"lane": settings.lane, "num_workers": settings.num_workers},
        "jobs": [
            {"job": job.id, "lane": job.lane, "tasks": len(job.tasks), "wanted": job.open}
            for job in machine.jobs.values()
            if not job.futures or job.open
        ],
        "slots": [
            {"slot": slot.id, "runs": [key_of(task.id) for task in slot.batch[:SHOWN_TASKS]]}
            for slot in machine.slots.values()
        ],
        "workers": _workers(machine, key_of, lane),
        "tasks": counts,
        "waiting": [
            {"task": key_of(task.id), "state": STATE_NAMES[task.state], "for": _reason(task, key_of)}
            for task in tasks
            if STATE_NAMES[task.state] in ("waiting", "ready", "fetching")
        ][:SHOWN_TASKS],
        "families": _families(machine)[-SHOWN_TASKS:],
        "store": lane.store_status() if lane is not None else {},
    }


def _workers(machine: Machine, key_of: Callable[[int], str], lane: ProcessLane | None) -> list[dict[str, Any]]:
    """What the machine knows of each worker, and the lane of its process."""
    processes = {row["worker"]: row for row in lane.status()} if lane is not None else {}
    return [
        {
            "worker": worker.id,
            "pid": processes.get(worker.id, {}).get("pid"),
            "rss_bytes": processes.get(worker.id, {}).get("rss_bytes", 0),
            "up": worker.up,
            "runs": next((key_of(number) for number in worker.queue), None),
            "queued": max(len(worker.queue) - 1, 0),  # behind what it runs
            "holds": len(worker.holds),
        }
        for worker in machine.workers.values()
    ]


def _families(machine: Machine) -> list[dict[str, Any]]:
    return [
        {
            "family": str(family.name),
            "kind": KIND_NAMES[family.kind],
            "runs": family.runs,
            "seconds": family.wall_s,
            "pending": family.pending,
        }
        for family in machine.families.values()
    ]


def _reason(task: Task, key_of: Callable[[int], str]) -> str:
    state = STATE_NAMES[task.state]
    if state == "ready":
        return "a free slot or worker"
    if state == "fetching":
        return "inputs that another process is putting into shared memory"
    missing = [dep for dep in task.deps if STATE_NAMES[dep.state] != "done"]
    return ", ".join(key_of(dep.id) for dep in missing[:3]) + (
        f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    )


class _Publisher:
    """Publishes the status of this process's runtimes; its thread sleeps while nothing runs."""

    def __init__(self) -> None:
        self.runtimes: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._fd = -1

    def touch(self) -> None:
        """Something runs: publish until it is over."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._start()
        self._wake.set()

    def _start(self) -> None:
        self._closing.clear()
        self._thread = threading.Thread(target=self._run, name="headrace-status", daemon=True)
        try:
            if self._fd < 0:
                self._fd = os.memfd_create(STATUS_NAME, os.MFD_CLOEXEC)
            self._thread.start()
        except (OSError, RuntimeError):  # no descriptor or no thread is left: what runs matters more
            self._thread = None
            self._close_fd()

    def _close_fd(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
            self._closing.set()
            self._wake.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)
        with self._lock:
            if self._thread is None:
                self._close_fd()

    def _run(self) -> None:
        me = threading.current_thread()
        while self._thread is me:
            self._wake.wait()
            self._wake.clear()
            if self._closing.wait(REFRESH_S):
                return
            states = [_state_of(runtime) for runtime in list(self.runtimes)]
            if any(state.get("jobs") for state in states):
                self._wake.set()
            text = json.dumps(states, default=repr).encode()
            with self._lock:
                if self._fd >= 0:
                    os.ftruncate(self._fd, 0)
                    os.pwrite(self._fd, text, 0)


def _state_of(runtime: Engine) -> dict[str, Any]:
    """Its status; if that cannot be told, because of a key that cannot be written for example, then why."""
    try:
        return runtime.status()
    except Exception as error:  # see above: a user's __str__ or __repr__ may raise anything
        return {"pid": os.getpid(), "error": f"{type(error).__name__}: {error}"}


_publisher = _Publisher()


def register(runtime: Engine) -> None:
    _publisher.runtimes.add(runtime)


def unregister(runtime: Engine) -> None:
    _publisher.runtimes.discard(runtime)
    if not _publisher.runtimes:
        _publisher.close()


def touch() -> None:
    _publisher.touch()


def _forget_in_child() -> None:
    """The parent's file and thread are not ours."""
    global _publisher
    _publisher = _Publisher()


os.register_at_fork(after_in_child=_forget_in_child)


def read_status(timeout_s: float = 1.0) -> list[dict[str, Any]]:
    """The published states of all runtimes of this user on this machine, one entry a runtime.

    Blocks for at most ``timeout_s`` for a text that is just being rewritten.
    """
    found = []
    for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):
        for path in _descriptors(pid):
            try:
                if os.readlink(path).startswith(f"/memfd:{STATUS_NAME}"):
                    found += _read_states(path, timeout_s)
            except OSError:
                continue  # closed meanwhile
    return found


def _descriptors(pid: str) -> list[str]:
    try:
        return [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []  # gone meanwhile, or another user's


def _read_states(path: str, timeout_s: float) -> list[dict[str, Any]]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with open(path, "rb") as file:
            text = file.read()
        try:
            states: list[dict[str, Any]] = json.loads(text)
            return states
        except ValueError:  # it is just being rewritten, and nothing tells when it has been
            time.sleep(_LOOK_AGAIN_S)
    return []
