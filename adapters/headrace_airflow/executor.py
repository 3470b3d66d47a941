"""HeadraceExecutor: the thin part that lives in the scheduler. All work is the node daemon's.

    scheduler loop ── queue_workload, heartbeat ──▶ HeadraceExecutor ══ socket ══▶ daemon
                   ◀── success(), fail(), running_state() ──

Every submission has an id of its own: the external executor id that the scheduler assigned when it queued the task
(before 3.3: takes from us then), so that a scheduler that comes after a killed one can ask the daemon for it. One key
may have two submissions for a moment (a deferred task that resumes before its first process is gone), never two with
one id.

Nothing here waits for a task, with one exception: when there is nothing else to do, ``sync`` waits up to the time that
the scheduler would have slept anyway, and returns at once when a task has ended or a run was asked for. That is what
closes the gap between a task and its successor, and between a run and its first task. For the daemon ``start`` waits
until it listens, and an adoption for its answer; ``end`` waits for all that runs. Not thread-safe.
"""

from __future__ import annotations

import functools
import logging
import os
import select
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from airflow.configuration import conf
from airflow.executors.base_executor import BaseExecutor
from airflow.utils.state import TaskInstanceState

from headrace.errors import ConfigError
from headrace_airflow import client, internals, places, settings, task_logging, xcom
from headrace_airflow.collector import Collector
from headrace_airflow.ends import End, Ends
from headrace_airflow.newcomers import Newcomers
from headrace_airflow.wire import Channel, Message

if TYPE_CHECKING:
    from airflow.executors import workloads
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.taskinstancekey import TaskInstanceKey

_LOOK_S = 0.5
_ADOPT_S = 10.0
_GATHER_S = 0.25
"""While tasks wait in the daemon, successors need not hurry: ends of tasks are gathered for so long, to save loops."""
_GATHER_LOOPS = 2.0
"""... and for so many times the time that a loop takes, so that a slow loop leaves the machine to the tasks."""
_RENEW_SHARE = 0.4
"""Of the time that a token is good for; then it is replaced."""
_LONGEST_REST_S = 1.0
"""The scheduler's loop goes on after so long, even where its idle sleep is longer."""
_DRAIN_TURN_S = 30.0
_STOCK_RETRIES, _STOCK_LONGEST_S = 5, 90.0
_PATIENCE = {
    "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "40",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "4",
}


class _Sent(NamedTuple):
    message: Message
    sent_at: float


class HeadraceExecutor(BaseExecutor):
    """Runs tasks on this machine, warm; set ``[core] executor = headrace_airflow.HeadraceExecutor``."""

    is_local = True
    is_production = True
    serve_logs = True
    supports_ad_hoc_ti_run = True
    supports_callbacks = internals.has_module("airflow.sdk.execution_time.callback_supervisor")
    supports_multi_team = True
    supports_connection_test = internals.has_module("airflow.sdk.execution_time.connection_test_supervisor")
    pre_assigns_external_executor_id: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings.resolve(_section(self.conf), self.parallelism)
        self._place: Path | None = None
        self._daemon: Channel | None = None
        self._makes_way = False
        """The daemon has said that it ends when nothing runs."""
        self._keys: dict[str, Any] = {}
        """Submission → key, of what the daemon has."""
        self._log_paths: dict[str, str | None] = {}
        """Submission → where its log is, of what the daemon has: its own death it cannot tell there."""
        self._active: dict[Any, str] = {}
        """Key → its latest submission."""
        self._unstarted: dict[str, _Sent] = {}
        """Submissions that the daemon has not started yet: another daemon may have to do it."""
        self._node_is_full = self._node_is_drained = False
        """Whether what the daemon has waits for room; whether it starts nothing."""
        self._given_up: Counter[Any] = Counter()
        """How often a task that had not started was taken back, by its key."""
        self._ends = Ends()
        self._submitted = False
        self._synced_at = time.monotonic()
        self._looked_at = 0.0
        self._launched_at = float("-inf")
        self._wake_key = internals.wake_key()
        self._idle_sleep_s = conf.getfloat("scheduler", "scheduler_idle_sleep_time", fallback=1.0)
        self._most_requeues = conf.getint("scheduler", "num_stuck_in_queued_retries", fallback=2)
        self._renew_s = _RENEW_SHARE * min(
            conf.getfloat("scheduler", "task_queued_timeout", fallback=600.0),
            conf.getfloat("execution_api", "jwt_expiration_time", fallback=600.0),
        )
        self._runs = Newcomers(internals.newest_queued_run)
        self._waits_for_runs = False
        self._draining = False
        self._collector: Collector | None = None

    # --- life ---

    @property
    def place(self) -> Path:
        """The daemon's folder."""
        if self._place is None:
            from airflow.configuration import AIRFLOW_HOME

            database = conf.get_mandatory_value("database", "sql_alchemy_conn")
            self._place = places.folder(AIRFLOW_HOME, database, self.team_name, self.settings.directory)
        return self._place

    @functools.cached_property
    def _setup(self) -> client.Setup:
        """What a daemon is started with. One that was started with something else makes way as soon as it is idle."""
        from airflow.configuration import AIRFLOW_CONFIG

        return client.Setup(self.settings, _environment(), _store(), AIRFLOW_CONFIG)

    @property
    def log_file(self) -> Path:
        """Where the daemon, and what it starts, write what concerns no single task."""
        return Path(conf.get_mandatory_value("logging", "base_log_folder"), "headrace", "daemon.log")

    def start(self) -> None:
        """Finds or starts the daemon."""
        internals.connect_anew()
        self._daemon = client.connect_or_launch(self.place, self._setup, self.log_file, "scheduler")
        self.log.info("Connected to the Headrace daemon in %s", self.place)
        self._waits_for_runs = internals.may_sleep_for_scheduler()
        self._idle_sleep_s /= internals.number_of_executors()  # each of them waits in its turn
        if _store():
            self._collector = Collector(xcom.settings().collect_s, self.log_file)

    def end(self) -> None:
        """Waits for what runs, unless ``[headrace] at_end`` says otherwise; then lets the daemon be."""
        if self.settings.at_end == "detach":
            self.terminate()
            return
        self._draining = True
        self.log.info("Waiting for %d running workloads; signal again not to wait", len(self._keys))
        while self._has_something_to_wait_for():
            self._wait(_DRAIN_TURN_S)
            self._take_events()
        self._tell(*self._ends.due(at_once=True))
        self._disconnect()

    def _has_something_to_wait_for(self) -> bool:
        """Whether anything runs, or will; what waits in a drained node is there for the scheduler that comes next."""
        waiting = self._unstarted.keys() if self._node_is_drained else set()
        return self._daemon is not None and not self._keys.keys() <= waiting

    def terminate(self) -> None:
        """Leaves what runs to itself: a scheduler that comes later adopts it."""
        self._disconnect()

    def _disconnect(self) -> None:
        if self._collector is not None:
            self._collector.close()
        if self._daemon is not None:
            self._daemon.drain(1.0)
            self._daemon.close()
            self._daemon = None
            self._node_is_full = self._node_is_drained = False  # the next one says so

    # --- submitting ---

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        for workload in workload_items:
            key = workload.key if hasattr(workload, "key") else workload.ti.key  # before 3.3
            connection_tests = getattr(self, "queued_connection_tests", {})  # from 3.3
            for queue in (self.queued_tasks, self.queued_callbacks, connection_tests):
                queue.pop(key, None)
            self.running.add(key)
            try:
                self._submit(key, workload)
            except ConfigError as error:
                task_logging.tell(workload.log_path, str(error))
                self.fail(key, info=str(error))
            self._submitted = True

    def _submit(self, key: Any, workload: workloads.All) -> None:
        ti = getattr(workload, "ti", None)
        needs = settings.needs_of(getattr(ti, "executor_config", None))
        submission = str(getattr(ti, "external_executor_id", None) or uuid.uuid4())
        if ti is not None and not internals.assigns_ids():
            self.change_state(key, TaskInstanceState.QUEUED, submission, remove_running=False)
        message: Message = {
            "t": "submit",
            "id": submission,
            "name": _name(workload),
            "workload": workload.model_dump(mode="json"),
            "server": _server(self.conf),
            "file": _file_of(workload) if ti is not None else None,
            "priority": getattr(ti, "priority_weight", 0),
            "cpus": needs.cpus,
            "memory_bytes": needs.memory_bytes,
        }
        self._keys[submission] = key
        self._log_paths[submission] = message["workload"].get("log_path")
        self._active[key] = submission
        self._unstarted[submission] = _Sent(message, time.monotonic())
        if self._daemon is not None:
            self._daemon.send(message)

    # --- events ---

    def sync(self) -> None:
        """Takes in what the daemon says; waits only instead of the scheduler's idle sleep."""
        if self._collector is not None:
            self._collector.look()
        submitted, self._submitted = self._submitted, False
        now = time.monotonic()
        loop_s = now - self._synced_at
        self._reconnect()
        self._renew_tokens()
        self._look_for_lost_tasks()
        woken = self._take_events()
        if self._may_wait():
            gather_s = max(_GATHER_S, _GATHER_LOOPS * loop_s)
            longest_s = min(self._idle_sleep_s, gather_s if submitted else _LONGEST_REST_S)
            self._gather(now, woken, longest_s, gather_s)
            woken = True  # also when nothing has happened: the loop has slept here
        if woken and self._may_close_gap():
            self._keep_awake()
        self._tell(*self._ends.due(at_once=not self._keys))
        self._synced_at = time.monotonic()

    def _gather(self, start: float, woken: bool, longest_s: float, gather_s: float) -> None:
        """Waits until the scheduler should look: there is news and a task could start, or enough time has passed."""
        while self._has_reason_to_wait() and not (woken and self._has_room()):
            left_s = start + (gather_s if woken else longest_s) - time.monotonic()
            if left_s <= 0:
                break
            self._wait(min(left_s, self._runs.every_s))
            woken |= self._take_events()
            woken = woken or self._runs.have_come()

    def _has_reason_to_wait(self) -> bool:
        return self._daemon is not None and (bool(self._keys) or self._waits_for_runs)

    def _has_room(self) -> bool:
        """Whether the daemon could start a successor at once: nothing that it has is waiting to start."""
        return not self._unstarted

    def _may_close_gap(self) -> bool:
        return self.settings.close_gap and self._wake_key is not None

    def _may_wait(self) -> bool:
        return self._may_close_gap() and self._idle_sleep_s > 0 and self._has_reason_to_wait()

    def _keep_awake(self) -> None:
        """Has the scheduler's loop not sleep: see ``internals.wake_key``."""
        self.success(self._wake_key)

    def _wait(self, timeout_s: float) -> None:
        if self._daemon is not None:
            poll = select.poll()
            poll.register(self._daemon, select.POLLIN | (select.POLLOUT if self._daemon.unsent else 0))
            poll.poll(timeout_s * 1000)

    def _take_events(self) -> bool:
        """Takes in all that has arrived; whether the scheduler has to look at once."""
        if self._daemon is None:
            return False
        self._daemon.flush()
        found = [self._take(message) for message, _ in self._daemon.receive()]
        if self._daemon.closed:
            self._lose_daemon()
            return True
        return any(found)

    def _take(self, message: Message) -> bool:
        if message["t"] == "outdated":
            self._makes_way = True
            self.log.warning(
                "The Headrace daemon was started with another environment, other settings or other packages, and runs "
                "tasks: those that come now run with these, too, until it has nothing to do"
            )
        elif message["t"] == "room":
            self._node_is_full, self._node_is_drained = message["full"], message["drained"]
        key = self._keys.get(message.get("id", ""))
        if key is None:
            return False
        match message["t"]:
            case "started":
                self._unstarted.pop(message["id"], None)
                self._given_up.pop(key, None)
                if (state := _running_state(key)) is not None:
                    self.running_state(key, state)
            case "reported":
                if message["state"] == TaskInstanceState.SUCCESS:
                    self._ends.succeeded(message["id"])
                return True
            case "ended":
                self._finish(message["id"], key, message)
                return not message.get("ok") or not self._keys
        return False

    def _finish(self, submission: str, key: Any, message: Message) -> None:
        self._log_paths.pop(submission, None)
        del self._keys[submission]
        self._unstarted.pop(submission, None)
        if self._active.get(key) == submission:
            del self._active[key]
            self.running.discard(key)
        if message.get("dropped"):
            return
        if log_path := message.get("log_path"):
            task_logging.tell(log_path, message["info"])
        end = End(key, _ended_state(key, bool(message["ok"])), message.get("info"))
        if self._ends.may_wait(submission) and message["ok"]:
            self._ends.add(end)
        else:  # after those that came before: of two tries of one task the scheduler takes the one told last
            self._tell(*self._ends.due(at_once=True), end)

    def _tell(self, *ends: End) -> None:
        for end in ends:
            self.change_state(*end, remove_running=False)

    def _lose_daemon(self) -> None:
        """The daemon has gone, and with it all that it ran; what it had not started waits for the next one.

        Should one of these have started after all, the API server refuses to start it twice.
        """
        self._disconnect()
        level = logging.INFO if self._makes_way else logging.ERROR
        self._makes_way = False
        self.log.log(level, "The Headrace daemon is gone; see %s", self.log_file)
        info = "The Headrace daemon ended, and the task with it"
        for submission, key in list(self._keys.items()):
            if submission not in self._unstarted:
                end = {"ok": False, "info": info, "log_path": self._log_paths.get(submission)}
                self._finish(submission, key, end)

    def _reconnect(self) -> None:
        if self._daemon is not None or self._place is None or self._draining:
            return
        self._daemon = client.connect(self.place, "scheduler", 1.0, self._setup.fingerprint)
        if self._daemon is not None:
            for sent in self._unstarted.values():
                self._daemon.send(sent.message)
        elif time.monotonic() - self._launched_at > client.LAUNCH_AGAIN_S and not client.running(self.place):
            self._launched_at = time.monotonic()
            try:
                client.launch(self.place, self._setup, self.log_file)
            except OSError as error:  # no process, memory or descriptor for it: the next time, perhaps
                self.log.error("The Headrace daemon could not be started: %s", error)

    @property
    def slots_available(self) -> int:
        """As stock; none while there is no daemon, or while what it has waits for room.

        What cannot start soon is better off unqueued: there the scheduler goes by priorities, and no token runs out.
        """
        available: int = super().slots_available
        return available if self._daemon is not None and not self._node_is_full else 0

    def _renew_tokens(self) -> None:
        """What waits for room gets a new token before its own runs out."""
        now = time.monotonic()
        for submission, sent in list(self._unstarted.items()):
            workload = sent.message["workload"]
            if now - sent.sent_at >= self._renew_s and workload.get("ti"):
                token = internals.token(workload["ti"]["id"], self.jwt_generator)
                workload["token"] = token
                self._unstarted[submission] = _Sent(sent.message, now)
                if self._daemon is not None:
                    self._daemon.send({"t": "renew", "id": submission, "token": token})

    # --- what the scheduler asks for ---

    def _look_for_lost_tasks(self) -> None:
        """Tasks that are no longer running as far as the database knows: their supervisors shall ask at once.

        Their next heartbeat would tell them, up to 5 s later.
        """
        now = time.monotonic()
        if not self._keys or self._daemon is None or now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        if lost := internals.no_longer_running(self._keys):
            self._daemon.send({"t": "look", "ids": lost})

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Takes over what the daemon still has of a dead scheduler's tasks: the same try goes on."""
        if self._daemon is None:
            return tis
        asked = {str(ti.external_executor_id): ti for ti in tis if ti.external_executor_id}
        if not asked:
            return tis
        for submission, ti in asked.items():
            self._keys[submission] = ti.key
        self._daemon.send({"t": "adopt", "ids": list(asked)})
        answer = self._await_adoption()
        known = set(answer.get("ids", ()))
        for submission, ti in asked.items():
            if submission not in known:
                self._keys.pop(submission, None)
            elif submission in self._keys:
                self.running.add(ti.key)
                self._active[ti.key] = submission
                self._log_paths[submission] = answer.get("log_paths", {}).get(submission)
        return [ti for ti in tis if str(ti.external_executor_id) not in known]

    def _await_adoption(self) -> Message:
        deadline = time.monotonic() + _ADOPT_S
        while self._daemon is not None and time.monotonic() < deadline:
            self._wait(deadline - time.monotonic())
            messages = [message for message, _ in self._daemon.receive()]
            answer: Message | None = None
            for message in messages:  # in their order: what has not started may do so at once
                if message["t"] == "adopted":
                    answer = message
                    old = float("-inf")  # so may be their tokens
                    self._unstarted |= {waiting["id"]: _Sent(waiting, old) for waiting in message.get("waiting", ())}
                else:
                    self._take(message)
            if answer is not None:
                return answer
            if self._daemon.closed:
                self._lose_daemon()
        return {}

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Drops a task from the queue, or kills it; the database is the caller's.

        Raises:
            NotImplementedError: it waits for room, and would be failed for that by the scheduler, which takes back what
                was queued for long a few times only; so it leaves the task alone.
        """
        key: TaskInstanceKey = ti.key
        if self._active.get(key) in self._unstarted and self._daemon is not None:
            if self._given_up[key] >= self._most_requeues:
                raise NotImplementedError(f"{key} waits for room in the Headrace daemon")
            self._given_up[key] += 1
        self.queued_tasks.pop(key, None)
        self.event_buffer.pop(key, None)
        self.running.discard(key)
        submission = self._active.pop(key, None)
        self._ends.forget(key, submission)
        if submission is not None:
            self._keys.pop(submission, None)
            self._log_paths.pop(submission, None)
            self._unstarted.pop(submission, None)
            if self._daemon is not None:
                self._daemon.send({"t": "revoke", "id": submission})

    def get_task_log(self, ti: TaskInstance, try_number: int) -> tuple[list[str], list[str]]:
        """What a running task has written so far."""
        try:
            daemon = client.connect(self.place, "reader", timeout_s=1.0)
        except (ConfigError, PermissionError) as error:  # the folder is another user's
            return [f"Headrace's daemon cannot be asked: {error}"], []
        if daemon is None:
            return [], []
        status = client.ask(daemon, {"t": "status"}, timeout_s=1.0) or {"tasks": []}
        daemon.close()
        submission = str(ti.external_executor_id)
        task = next((task for task in status["tasks"] if task["id"] == submission), None)
        if task is None or not task["log_path"] or ti.try_number != try_number:
            return [], []
        path = Path(conf.get_mandatory_value("logging", "base_log_folder"), task["log_path"])
        try:
            text = path.read_text(errors="replace")
        except FileNotFoundError:
            text = ""
        return [f"Running under Headrace as process {task['pid']}"], [text]

    @staticmethod
    def get_cli_commands() -> list[Any]:
        """``airflow headrace ...``: see ``commands``."""
        from headrace_airflow import commands

        return commands.commands()


def _environment() -> dict[str, str]:
    """What tasks get. Where nobody has said how often requests to the API server are tried: for a minute or two.

    Stock's five times are over in some seconds, and then a restart of the API server fails tasks. Each time it waits
    for longer, too, so that a task may notice only minutes later that the server is back.
    """
    retries = conf.getint("workers", "execution_api_retries", fallback=_STOCK_RETRIES)
    longest_s = conf.getfloat("workers", "execution_api_retry_wait_max", fallback=_STOCK_LONGEST_S)
    as_it_comes = (retries, longest_s) == (_STOCK_RETRIES, _STOCK_LONGEST_S)
    return {**(_PATIENCE if as_it_comes else {}), **os.environ}


def _section(configuration: Any) -> dict[str, Any]:
    """Our section, name by name: as a whole, Airflow shows it only where a configuration file has it."""
    return {name: configuration.get("headrace", name, fallback=None) for name in settings.NAMES}


def _store() -> str:
    """The settings of the node's store, for the daemon to host it; empty: the XCom backend is another one."""
    from airflow.sdk.execution_time.xcom import XCom

    return xcom.settings().to_json() if issubclass(XCom, xcom.HeadraceXCom) else ""


def _server(configuration: Any) -> str:
    try:
        from airflow.executors.base_executor import get_execution_api_server_url
    except ImportError:  # before 3.3
        base = configuration.get("api", "base_url", fallback="/")
        base = f"http://localhost:8080{base}" if base.startswith("/") else base
        url = configuration.get("core", "execution_api_server_url", fallback=f"{base.rstrip('/')}/execution/")
        return str(url)
    return str(get_execution_api_server_url(configuration))


def _name(workload: Any) -> str:
    if (ti := getattr(workload, "ti", None)) is None:
        return str(workload.display_name)
    mapped = "" if ti.map_index < 0 else f"[{ti.map_index}]"
    return f"{ti.dag_id}.{ti.task_id}{mapped} {ti.run_id} #{ti.try_number}"


def _file_of(workload: Any) -> list[str]:
    return [workload.bundle_info.name, workload.bundle_info.version or "", os.fspath(workload.dag_rel_path)]


def _ended_state(key: Any, ok: bool) -> Any:
    state = internals.state_class(key)
    return state.SUCCESS if ok else state.FAILED


def _running_state(key: Any) -> Any:
    """The state to report when a workload has started; tasks report it themselves."""
    return None if internals.is_task(key) else internals.state_class(key).RUNNING
