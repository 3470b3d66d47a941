"""Stock supervisors whose children come from a zygote; imported in the origin, used in supervisors.

What differs from stock:
- The child is forked by the zygote, so that it holds neither the token nor a copy of the supervisor's memory.
- Its end is a message in the selector: nothing waits for the next heartbeat to notice it.
- The first heartbeat comes when it is due, and when the scheduler has noticed that the task shall not go on.
- Rendered fields are stored after the terminal state, or after a second: they are for people to look at.
- The scheduler is told of the terminal state when the API server has it.
- A task that has been quiet is given back to the daemon, and goes on at a supervisor when it has something to say.

``_Forked`` sits between a stock class and ``WatchedSubprocess`` in the order of method resolution, and replaces only
the fork.
"""

from __future__ import annotations

import enum
import inspect
import os
import re
import selectors
import signal
import time
from collections.abc import Callable
from socket import socket, socketpair
from typing import Any, ClassVar, Final, NoReturn

import attrs
import psutil
from airflow.sdk.execution_time import supervisor as stock
from airflow.sdk.execution_time.comms import SetRenderedFields
from airflow.sdk.execution_time.supervisor import ActivitySubprocess as StockTask

from headrace.obituary import describe_exit
from headrace_airflow import streams, task_logging
from headrace_airflow.supervisor import NotStarted, Parked, Refused, Resumed, forked_by
from headrace_airflow.wire import Channel, Message

_RENDERED_AFTER_S: Final = 1.0
_QUIET_S: Final = 2.0
_LONGEST_QUIET_S: Final = 60.0
"""A task is parked after so long without a word: each time it has to be twice as long, up to this."""
_ZYGOTE_ENDED: Final = (
    "The process that the task was forked from, its zygote, has ended, and the task with it; "
    "the Headrace daemon's log says how"
)
_ALL_SOCKETS: Final = ("requests", "stdout", "stderr", "logs")

_NEGATIVE: Final = {number.name: -number.value for number in signal.Signals}
NegativeSignal = enum.IntEnum("NegativeSignal", _NEGATIVE)  # type: ignore[misc]  # mypy wants names and numbers spelled out
"""Stock looks for the name of an exit code that is a signal."""


class ForkedElsewhere(getattr(stock, "ProcessTracker", object)):  # type: ignore[misc]  # a base of newer releases
    """A process that is the zygote's child: the zygote says how it ended. For stock it behaves as psutil's do."""

    ProcessNotFound = psutil.NoSuchProcess
    TimeoutExpired = psutil.TimeoutExpired

    def __init__(self, pid: int, pid_fd: int, zygote: Channel) -> None:
        self._pid = pid
        self._pid_fd = pid_fd
        self._zygote = zygote
        self.rss_bytes = 0
        self.code: int | None = None
        self.lost = False
        """Whether nobody knows how it ended: the zygote has, and with it its children."""

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def pid_fd(self) -> int:
        """-1: it has ended."""
        return self._pid_fd

    def send_signal(self, s: signal.Signals) -> None:
        try:
            if self._pid_fd < 0:
                raise ProcessLookupError
            signal.pidfd_send_signal(self._pid_fd, s)
        except ProcessLookupError:
            raise psutil.NoSuchProcess(self._pid) from None

    def wait(self, timeout: float | None) -> int:
        """How it ended; never blocks: whoever waits has the zygote's channel in a selector."""
        self.hear()
        if self.code is None:
            raise psutil.TimeoutExpired(timeout or 0, self._pid)
        return self.code

    def hear(self) -> bool:
        """Takes in what the zygote says; whether it may say more."""
        self._take()
        if self.code is not None and self._pid_fd >= 0:
            os.close(self._pid_fd)
            self._pid_fd = -1
        return self.code is None

    def _take(self) -> None:
        if self.code is None:
            for message, _ in self._zygote.receive():
                code = message["code"]
                self.code = NegativeSignal(code) if code in NegativeSignal._value2member_map_ else code
                self.rss_bytes = message["rss_bytes"]
            if self.code is None and self._zygote.closed:
                self.lost = True
                self.code = -int(signal.SIGKILL)  # the kernel's; a ``NegativeSignal`` would have stock guess why


class _Noting(selectors.DefaultSelector):
    """Knows since when nothing has happened."""

    def __init__(self) -> None:
        super().__init__()
        self.quiet_since = time.monotonic()

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(timeout)
        if events:
            self.quiet_since = time.monotonic()
        return events


class _Forked(stock.WatchedSubprocess):
    """Replaces the fork of stock's ``start`` by a request to the zygote. No fields: it must not change the layout."""

    __slots__ = ()

    zygote: ClassVar[Channel]
    daemon: ClassVar[Channel]
    request: ClassVar[Message] = {"t": "fork"}
    resumed: ClassVar[Resumed | None] = None
    """What was parked, and is to be taken over instead of a fork."""

    @classmethod
    def start(
        cls,
        *,
        target: Callable[[], None] | None = None,
        logger: Any = None,
        use_exec: bool = False,
        new_process_group: bool = False,
        **constructor_kwargs: Any,
    ) -> Any:
        tracker, (requests, stdout, stderr, logs) = cls._fork() if cls.resumed is None else cls._take_over(cls.resumed)
        fields = {field.name.lstrip("_") for field in attrs.fields(cls)}
        known = {"new_process_group": True, "start_time": time.monotonic(), "selector": _Noting()}
        process = cls(
            pid=tracker.pid,
            stdin=requests,
            process=tracker,
            process_log=logger or stock.structlog.get_logger(logger_name="task").bind(),
            **{name: value for name, value in known.items() if name in fields},
            **constructor_kwargs,
        )
        takes_data = "data" in inspect.signature(cls._register_pipe_readers).parameters  # from 3.3
        earlier: dict[str, Any] = {"data": {}} if takes_data else {}
        process._register_pipe_readers(stdout, stderr, requests, logs, **earlier)
        process.selector.register(
            cls.zygote, selectors.EVENT_READ, (lambda _: tracker.hear(), _unregister(process.selector))
        )
        if cls.resumed is None:
            cls.daemon.send({"t": "started", "pid": tracker.pid})
        return process

    @classmethod
    def _fork(cls) -> tuple[ForkedElsewhere, list[socket]]:
        theirs, ours = zip(*(socketpair() for _ in range(4)), strict=True)
        cls.zygote.send(cls.request, [end.fileno() for end in theirs])
        try:
            pid, pid_fd = forked_by(cls.zygote)
        finally:
            for end in theirs:
                end.close()
        return ForkedElsewhere(pid, pid_fd, cls.zygote), list(ours)

    @classmethod
    def _take_over(cls, resumed: Resumed) -> tuple[ForkedElsewhere, list[socket]]:
        return ForkedElsewhere(resumed.record["pid"], resumed.pid_fd, cls.zygote), resumed.sockets


def _unregister(selector: selectors.BaseSelector) -> Callable[[Any], None]:
    def on_close(channel: Any) -> None:
        selector.unregister(channel)

    return on_close


@attrs.define(kw_only=True)
class Task(StockTask, _Forked):
    """A task; see the module. Before 3.3 it takes the stock class's place in its module (``_coordinate``)."""

    _rendered: SetRenderedFields | None = attrs.field(default=None, init=False)
    _rendered_due: float = attrs.field(default=0.0, init=False)
    _reported: bool = attrs.field(default=False, init=False)
    _quiet_s: float = attrs.field(default=_QUIET_S, init=False)
    _readers: dict[str, Any] = attrs.field(factory=dict, init=False)

    def _watch_readers(self) -> None:
        """Has all that reads from the task say whether it holds a part of something."""
        for sock, name in self._open_sockets.items():
            read, on_close = self.selector.get_key(sock).data
            self._readers[name] = reader = read if hasattr(read, "is_between") else streams.FrameWatch(read)
            self.selector.modify(sock, selectors.EVENT_READ, (reader, on_close))

    def _on_child_started(self, *, ti: Any, **kwargs: Any) -> None:
        self._watch_readers()
        if self.resumed is None:
            StockTask._on_child_started(self, ti=ti, **kwargs)
            self._last_heartbeat_attempt = time.monotonic()  # type: ignore[misc]  # a slot of StockTask, not of ours
        else:
            self._go_on(ti, self.resumed)
        self.selector.register(self.daemon, selectors.EVENT_READ, (self._listen, _unregister(self.selector)))

    def _go_on(self, ti: Any, resumed: Resumed) -> None:
        """Becomes what it was when it was parked."""
        now = time.monotonic()
        record = resumed.record
        state = {
            "ti": ti,
            "_should_retry": record["should_retry"],
            "_rendered_map_index": record["rendered_map_index"],
            "_last_successful_heartbeat": now,
            "_last_heartbeat_attempt": 0.0 if resumed.look else now,
        }
        for name, value in state.items():
            setattr(self, name, value)
        self._quiet_s = min(2 * record["quiet_s"], _LONGEST_QUIET_S)
        masker = _masker()
        if record["secrets"]:
            masker.patterns.update(record["secrets"])
            masker.replacer = re.compile("|".join(masker.patterns))

    def _listen(self, daemon: Channel) -> bool:
        if daemon.receive():
            self._last_heartbeat_attempt = 0.0  # type: ignore[misc]  # a slot of StockTask, not of ours
        return not daemon.closed

    def _handle_request(self, msg: Any, log: Any, req_id: int) -> None:
        self._readers["requests"].is_between = True
        if type(msg).__name__ == "ResendLoggingFD":  # another program goes on as the task, and gets a channel more
            self._quiet_s = float("inf")
        if isinstance(msg, SetRenderedFields):
            self._rendered = msg
            self._rendered_due = time.monotonic() + _RENDERED_AFTER_S
            self.send_msg(None, request_id=req_id)
        else:
            StockTask._handle_request(self, msg, log, req_id)
            self._report()

    def _report(self) -> None:
        """Has the scheduler look, once the API server knows a state that is not to be finished later."""
        if self._terminal_state in stock.STATES_SENT_DIRECTLY and not self._reported:
            self._reported = True
            self.daemon.send({"t": "reported", "state": str(self._terminal_state)})

    def _service_subprocess(self, max_wait_time: float, *args: Any, **kwargs: Any) -> Any:
        if self._rendered is not None:
            max_wait_time = min(max_wait_time, self._rendered_due - time.monotonic())
            if self._terminal_state or max_wait_time <= 0:
                self._store_rendered()
        elif not self._last_heartbeat_attempt and not self._terminal_state:
            max_wait_time = 0.0
        elif (left_s := self.selector.quiet_since + self._quiet_s - time.monotonic()) > 0:
            max_wait_time = min(max_wait_time, left_s)
        return StockTask._service_subprocess(self, max_wait_time, *args, **kwargs)

    def _send_heartbeat_if_needed(self) -> None:
        StockTask._send_heartbeat_if_needed(self)
        if time.monotonic() - self.selector.quiet_since >= self._quiet_s and self._may_be_parked():
            self._park()

    def _may_be_parked(self) -> bool:
        """Whether all there is to know of the task is what ``_park`` writes down."""
        unfinished = (self._terminal_state, getattr(self, "_pending_terminal_state_msg", None), self._rendered)
        return (
            self._exit_code is None
            and not any(unfinished)
            and self.failed_heartbeats == 0
            and getattr(self, "_subprocess_schema_version", None) is None
            and set(self._open_sockets.values()) == set(_ALL_SOCKETS)
            and all(reader.is_between for reader in self._readers.values())
        )

    def _park(self) -> NoReturn:
        record = {
            "pid": self.pid,
            "token": self.client.auth.token,
            "should_retry": self._should_retry,
            "rendered_map_index": self._rendered_map_index,
            "quiet_s": self._quiet_s,
            "secrets": sorted(_masker().patterns),
        }
        sockets = {name: sock for sock, name in self._open_sockets.items()}
        raise Parked(record, [sockets[name] for name in _ALL_SOCKETS], self._process.pid_fd)

    def _store_rendered(self) -> None:
        rendered, self._rendered = self._rendered, None
        if rendered is not None:
            try:
                self.client.task_instances.set_rtif(self.id, rendered.rendered_fields)
            except Exception as error:  # they are for show: the task goes on without
                self.process_log.warning("The rendered template fields could not be stored", error=str(error))

    def _check_subprocess_exit(self, *args: Any, **kwargs: Any) -> int | None:
        known = self._exit_code is not None
        code: int | None = StockTask._check_subprocess_exit(self, *args, **kwargs)
        if code is not None and code < 0 and not known:
            self._say_how_it_was_killed(code)
        return code

    def _say_how_it_was_killed(self, code: int) -> None:
        if getattr(self._process, "lost", False):
            self.process_log.error(_ZYGOTE_ENDED)
            return
        memory = getattr(self._process, "rss_bytes", 0)
        self.process_log.error(f"The task was {describe_exit(int(code))}", peak_memory_mib=memory >> 20)

    def update_task_state_if_needed(self) -> None:
        StockTask.update_task_state_if_needed(self)
        if not self._reported:
            self._reported = True
            self.daemon.send({"t": "reported", "state": str(self.final_state)})
        self._store_rendered()


class WarmCoordinator:
    """Airflow's hook for executing a task in another way (``[sdk] coordinators``, from 3.3)."""

    def execute_task(self, *, subprocess_logs_to_stdout: bool = False, **kwargs: Any) -> Any:
        """What stock's coordinator for Python does, with our class.

        A supervisor's own output is the daemon's log: what tasks write is not repeated there, whatever is asked for.
        """
        from airflow.sdk.execution_time.coordinator import BaseCoordinator

        for unknown in set(kwargs) - {"what", "dag_rel_path", "bundle_info", "client", "logger", "sentry_integration"}:
            del kwargs[unknown]
        process = Task.start(subprocess_logs_to_stdout=False, **kwargs)
        code = process.wait()
        return BaseCoordinator.ExecutionResult(code, process.final_state)


def prepare() -> None:
    """In the origin: what every supervisor would do for itself, once."""
    stock.ensure_secrets_backend_loaded()


def _masker() -> Any:
    """What hides secrets in what tasks write."""
    from airflow.sdk._shared.secrets_masker import secrets_masker

    return secrets_masker._secrets_masker()


def run(workload: Any, server: str, zygote: Channel, daemon: Channel, resumed: Resumed | None) -> Message:
    """Runs a workload; see ``internals.run_workload``."""
    _Forked.zygote, _Forked.daemon, _Forked.request, _Forked.resumed = zygote, daemon, {"t": "fork"}, resumed
    kind = type(workload).__name__
    if kind == "ExecuteTask":
        _run_task(workload, resumed.record["token"] if resumed else workload.token, server)
        return {"ok": True}
    from airflow.executors.base_executor import BaseExecutor

    if kind == "ExecuteCallback":
        _take_callback(workload)
    else:  # it gets a process of stock's own, of which nothing is said
        daemon.send({"t": "started", "pid": 0})
    BaseExecutor.run_workload(workload, server=server)
    return {"ok": True}


def _run_task(workload: Any, token: str, server: str) -> None:
    arguments: dict[str, Any] = {
        "ti": workload.ti,
        "bundle_info": workload.bundle_info,
        "dag_rel_path": workload.dag_rel_path,
        "token": token,
        "server": server,
        "log_path": workload.log_path,
    }
    if hasattr(workload, "sentry_integration"):
        arguments["sentry_integration"] = workload.sentry_integration
    _coordinate(workload.ti.queue or "default")
    supervise = getattr(stock, "supervise_task", None) or stock.supervise
    try:
        supervise(**arguments)
    except (NotStarted, Refused):
        raise
    except Exception as error:
        event = f"The task's supervisor has failed: {type(error).__name__}: {error}"
        task_logging.tell(workload.log_path, event, detail=str(getattr(error, "detail", "")), server=server)
        raise


def _coordinate(queue: str) -> None:
    """Has this queue's tasks go to ``WarmCoordinator``, unless the operator has sent them elsewhere."""
    try:
        from airflow.sdk.execution_time.coordinator import get_coordinator_manager
    except ImportError:  # before 3.3
        stock.ActivitySubprocess = Task
        return
    manager = get_coordinator_manager()
    if queue in manager._queue_to_coordinator:
        return
    manager._queue_to_coordinator = {**manager._queue_to_coordinator, queue: "headrace"}
    manager._created_coordinators["headrace"] = WarmCoordinator()


def _take_callback(workload: Any) -> None:
    """Has the callback's process come from the zygote, too."""
    from airflow.sdk.execution_time import callback_supervisor

    request = {
        "callback_path": workload.callback.data.get("path", ""),
        "callback_kwargs": workload.callback.data.get("kwargs", {}),
        "dag_rel_path": os.fspath(workload.dag_rel_path),
        "bundle": workload.bundle_info.model_dump(mode="json") if workload.bundle_info else None,
    }
    _Forked.request = {"t": "fork", "callback": request}
    if not issubclass(callback_supervisor.CallbackSubprocess, _Forked):

        @attrs.define(kw_only=True)
        class Callback(callback_supervisor.CallbackSubprocess, _Forked):
            pass

        callback_supervisor.CallbackSubprocess = Callback


def run_callback(request: Message) -> None:
    """In the child: has stock's callback supervisor make its target, and runs it here."""
    from airflow.executors.workloads import BundleInfo
    from airflow.sdk.execution_time import callback_supervisor

    class Here(stock.WatchedSubprocess):
        __slots__ = ()

        @classmethod
        def start(cls, *, target: Callable[[], None] | None = None, **kwargs: Any) -> None:
            assert target is not None
            target()

    class Callback(callback_supervisor.CallbackSubprocess, Here):
        __slots__ = ()

    Callback.start(
        id="00000000-0000-0000-0000-000000000000",
        callback_path=request["callback_path"],
        callback_kwargs=request["callback_kwargs"],
        dag_rel_path=request["dag_rel_path"],
        bundle_info=BundleInfo(**request["bundle"]) if request["bundle"] else None,
        client=None,
    )
