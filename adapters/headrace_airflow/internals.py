"""What leans on Airflow's internals, by the process that it runs in. What is missing is gone without.

    origin      prepare_origin
    supervisor  run_workload
    pulse       heartbeats
    zygote      forbid_database, hold_parsed, held_dag, reseed, run_task, run_ahead
    scheduler   has_module, connect_anew, wake_key, may_sleep_for_scheduler, number_of_executors, newest_queued_run,
                assigns_ids, token, is_task, state_class, no_longer_running

``activity`` has what supervisors need to be stock's, and ``task_logging`` what writes logs; ``generators``, ``ahead``,
``absent`` and ``rendering`` replace a few things of Airflow's in a task.

Nothing is imported from Airflow before it is needed: the daemon and the command line stay small.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from headrace_airflow.gate import Gate

if TYPE_CHECKING:
    from headrace_airflow.supervisor import Resumed
    from headrace_airflow.wire import Channel, Message


def has_module(name: str) -> bool:
    """Whether this Airflow has a module."""
    return importlib.util.find_spec(name) is not None


class NeedsSupervisor(BaseException):
    """A DAG file asks for a Variable, a Connection or the like while it is parsed without a task.

    No ``Exception``, so that neither Airflow nor the file takes it for an import error.
    """


# --- origin ---


_FOR_ALL: Final = (
    "airflow.dag_processing.bundles.manager",
    "airflow.dag_processing.dagbag",
    "airflow.executors.base_executor",
    "airflow.executors.workloads",
    "airflow.providers.standard.operators.bash",
    "airflow.providers.standard.operators.python",
    "airflow.sdk",
    "airflow.sdk._shared.logging.factory",
    "airflow.sdk._shared.logging.remote",
    "airflow.sdk.definitions.asset.metadata",
    "airflow.sdk.execution_time.coordinator",
    "airflow.sdk.execution_time.execute_workload",
    "airflow.sdk.execution_time.request_handlers",
    "airflow.sdk.execution_time.secrets",
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.log",
    "airflow.sdk.plugins_manager",
    "encodings.idna",
    "encodings.unicode_escape",
    "headrace_airflow.ahead",
    "headrace_airflow.rendering",
    "jinja2.ext",
    "setproctitle",
)
"""What supervisors and tasks import: once, for all of them."""


_REQUESTS_AT_ONCE: Final = 8
"""Half of what an API server with default settings can serve at once; the other half is for everybody else."""


def prepare_origin() -> None:
    """Imports what supervisors and tasks need, makes what they share, and mends what stock supervisors do badly."""
    for name in _FOR_ALL:
        try:
            importlib.import_module(name)
        except ImportError:  # this Airflow has no such module; whoever needs it says so
            pass
    from airflow.sdk.api import client
    from airflow.sdk.execution_time import supervisor

    from headrace_airflow import activity, streams

    activity.prepare()
    client.Client(base_url="http://localhost", token="").close()  # what it reads of certificates in 20 ms is kept
    _take_turns(client.Client)
    if hasattr(supervisor, "make_buffered_socket_reader"):
        supervisor.make_buffered_socket_reader = streams.line_reader
    _workload_adapter()
    _share_adapters()


def _take_turns(kind: Any) -> None:
    """Has few requests of this node's supervisors be under way at once, however many tasks run."""
    gate = Gate(_REQUESTS_AT_ONCE)
    stock = kind.send

    @functools.wraps(stock)
    def send(*args: Any, **kwargs: Any) -> Any:
        with gate.entered():
            return stock(*args, **kwargs)

    kind.send = send


class _Adapters:
    """``pydantic.TypeAdapter`` that makes each adapter once: every task makes the same five, in 20 ms of CPU."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock
        self._made: dict[int, Any] = {}

    def __call__(self, kind: Any) -> Any:
        if id(kind) not in self._made:
            self._made[id(kind)] = self._stock(kind)
        return self._made[id(kind)]

    def __getitem__(self, kind: Any) -> Any:
        return self._stock[kind]


def _share_adapters() -> None:
    from airflow.sdk.execution_time import comms, task_runner
    from pydantic import JsonValue, TypeAdapter

    adapters = _Adapters(TypeAdapter)
    for module in (comms, task_runner):
        if getattr(module, "TypeAdapter", None) is TypeAdapter:
            module.TypeAdapter = adapters
    for kind in (JsonValue, getattr(comms, "ToTask", None)):
        if kind is not None:
            adapters(kind)


@functools.cache
def _workload_adapter() -> Any:
    """What makes workloads of JSON; making it takes some milliseconds."""
    from airflow.executors import workloads
    from pydantic import TypeAdapter

    return TypeAdapter(workloads.All)


# --- supervisor ---


def run_workload(message: Message, zygote: Channel, daemon: Channel, resumed: Resumed | None) -> Message:
    """Runs one workload to its end; returns what is to be reported.

    Args:
        message: what the daemon has sent.
        zygote: where the task is forked, or was.
        daemon: the connection to it.
        resumed: a task that was parked; ``None``: it has not started.

    Raises:
        NotStarted: the zygote was gone before anything had run.
        Parked: the task runs, and has been quiet.
        Exception: whatever stock supervisors raise; then the workload has failed.
    """
    from headrace_airflow import activity

    workload = _workload_adapter().validate_python(message["workload"])
    return activity.run(workload, message["server"], zygote, daemon, resumed)


# --- pulse ---


class Refused(Exception):
    """The API server has an opinion on a task, and it is not that it shall go on."""


def heartbeats() -> tuple[Callable[[str, str, str, int], str], float, float]:
    """What sends heartbeats, how often they are due, and when the scheduler gives up waiting: see ``pulse.Pulse``."""
    import httpx
    from airflow.sdk.api import client
    from airflow.sdk.execution_time import supervisor

    class Impatient(client.Client):
        """Stock's client, which does not try again."""

        def request(self, *args: Any, **kwargs: Any) -> Any:
            return httpx.Client.request(self, *args, **{**kwargs, "headers": {"content-type": "application/json"}})

    clients: dict[str, Any] = {}

    def send(server: str, token: str, ti: str, pid: int) -> str:
        if server not in clients:
            clients[server] = Impatient(base_url=server, token=token)
        clients[server].auth = client.BearerAuth(token)
        try:
            clients[server].task_instances.heartbeat(ti, pid)
        except client.ServerResponseError as error:
            if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                raise Refused from error
            raise
        return str(clients[server].auth.token)

    return send, float(supervisor.MIN_HEARTBEAT_INTERVAL), float(supervisor.HEARTBEAT_TIMEOUT)


# --- zygote and task ---


def forbid_database() -> None:
    """User code has no access to the metadata database, as in stock tasks; here before the first file is parsed."""
    from airflow.sdk.execution_time import supervisor

    supervisor.block_orm_access()


_held: Any = None
"""The bag with the DAGs of the file that this zygote holds."""


def held_dag(dag_id: str) -> Any:
    """A DAG of the file that is held; ``None``: there is none of that name."""
    return None if _held is None else _held.dags.get(dag_id)


def hold_parsed(
    bundle_name: str, version: str | None, rel_path: str, folder: str, begins: Callable[[str], None]
) -> str:
    """Parses a DAG file as a task would, and finds the listeners of tasks; those forked from here have all this.

    Args:
        bundle_name: of the bundle that has the file.
        version: of the bundle; ``None``: it has none.
        rel_path: of the file, inside of the bundle.
        folder: the bundle's, as a task has found it; empty: no task has told.
        begins: called with the path of the file when it is about to be run.

    Returns:
        why it cannot be held; empty: it is held.
    """
    from airflow.dag_processing import dagbag
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.sdk.execution_time import task_runner

    comms = _NoSupervisor()
    task_runner.SUPERVISOR_COMMS = comms
    try:
        if not folder:
            bundle = DagBundlesManager().get_bundle(name=bundle_name, version=version)
            bundle.initialize()
            folder = os.fspath(bundle.path)
        file = os.path.join(folder, rel_path)
        stock = dagbag.BundleDagBag
        arguments = {
            "dag_folder": file,
            "safe_mode": False,
            "load_op_links": False,
            "bundle_path": Path(folder),
            "bundle_name": bundle_name,
        }
        begins(file)
        bag = stock(**arguments)
        _find_listeners()
    finally:
        del task_runner.SUPERVISOR_COMMS
    if comms.asked_for:
        return f"it asks for {comms.asked_for} while it is parsed"
    if bag.import_errors:
        return "it has import errors"
    if not bag.dags:
        return "it has no DAG"

    def held(*args: Any, **kwargs: Any) -> Any:
        return bag if not args and kwargs == arguments else stock(*args, **kwargs)

    global _held
    _held = bag
    dagbag.BundleDagBag = held
    return ""


def _find_listeners() -> None:
    """Loads the plugins, for those among them that listen to tasks."""
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.listener import get_listener_manager

    task_runner.SUPERVISOR_COMMS = _NoSupervisor()
    try:
        get_listener_manager()
    except NeedsSupervisor:  # a plugin asks for something of Airflow's: each task loads them for itself
        pass


class _NoSupervisor:
    """Stands where a task has its connection to the supervisor."""

    asked_for = ""

    def send(self, msg: object, *args: object, **kwargs: object) -> NoReturn:
        self.asked_for = type(msg).__name__
        raise NeedsSupervisor(self.asked_for)

    asend = send


def reseed() -> None:
    """Children of one process must not draw the same numbers. The standard library sees to itself."""
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()


def run_ahead(operator: Any, feeds: Any, task: Channel, tell: Any, first: int | None) -> NoReturn:
    """In the process: see ``ahead.run``."""
    from headrace_airflow import ahead

    ahead.run(operator, feeds, task, tell, first)


def run_task(message: Message, fds: list[int], forerunner: Channel | None, tell: Any) -> NoReturn:
    """In the task process: what the stock supervisor's child does; never returns.

    Args:
        message: what the supervisor asks for.
        fds: the ends of the supervisor's connections.
        forerunner: where to find what ran ahead of the task.
        tell: brings a message to the zygote.
    """
    from airflow.sdk.execution_time import supervisor

    from headrace_airflow import ahead, generators, preload, rendering, task_logging

    _end_on_sigterm()
    _watch_parse(tell)
    preload.announce(tell)
    requests, stdout, stderr, log_fd = fds
    rendering.install()
    sockets = [socket.socket(fileno=fd) for fd in (requests, stdout, stderr)]
    task_logging.use()
    if generators.in_use():
        ahead.prepare(None if forerunner is None else ahead.Forerunner(forerunner, log_fd), tell)
    supervisor._fork_main(*sockets, log_fd, _target(message))
    os._exit(124)  # it never returns


def _end_on_sigterm() -> None:
    """A task whose operator has no ``on_kill`` of its own ends when it is told to.

    Stock's handler of SIGTERM calls the empty ``on_kill`` and has the task go on, to be killed 5 s later. Others that
    call ``on_kill`` (a timeout) do so as in stock.
    """
    from airflow.sdk import BaseOperator

    def on_kill(self: Any) -> None:
        if sys._getframe(1).f_code.co_name == "_on_term":
            os.kill(os.getpid(), signal.SIGKILL)

    BaseOperator.on_kill = on_kill


def _watch_parse(tell: Any) -> None:
    """A task that crashes ends; and one that parses its file for itself tells where its bundle is.

    While it imports a file, stock sets a handler of SIGSEGV in Python and leaves it there: the instruction that failed
    is then tried again for ever.

    To know its folder, a bundle may need a Connection (git), which a zygote cannot ask for.
    """
    from airflow.dag_processing import dagbag
    from airflow.sdk.execution_time import task_runner

    stock, stock_bag = task_runner.parse, dagbag.BundleDagBag

    @functools.wraps(stock)
    def parse(what: Any, *args: Any, **kwargs: Any) -> Any:
        def bag(*args: Any, **kwargs: Any) -> Any:
            bundle = [what.bundle_info.name, what.bundle_info.version or ""]
            tell({"t": "bundle", "bundle": bundle, "folder": os.fspath(kwargs["bundle_path"])}, [])
            return stock_bag(*args, **kwargs)

        if _held is None:
            dagbag.BundleDagBag = bag
        try:
            return stock(what, *args, **kwargs)
        finally:
            dagbag.BundleDagBag = stock_bag
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)

    task_runner.parse = parse


def _target(message: Message) -> Callable[[], None]:
    if callback := message.get("callback"):
        from headrace_airflow import activity

        return lambda: activity.run_callback(callback)
    from airflow.sdk.execution_time import task_runner

    main: Callable[[], None] = task_runner.main
    return main


# --- scheduler ---


def connect_anew() -> None:
    """Has this process share no connection to the database with the processes that it has forked.

    The scheduler has forked a server of logs by now, with a copy of the one connection that it goes on using. That
    server lives on when the scheduler is killed, so the connection would stay open, and with it the transaction that it
    was in: a run whose row is locked there is passed over by every other scheduler.
    """
    from airflow import settings

    if settings.engine is not None:
        settings.engine.dispose()


def wake_key() -> Any:
    """A key for an event that the scheduler counts, and otherwise ignores: it does not sleep after it.

    The loop sleeps unless tasks were queued or events are left over. An event of a connection test that does not exist
    is left over and does nothing (``SchedulerJobRunner.process_executor_events``). ``None``: this Airflow has none;
    then a small ``[scheduler] scheduler_idle_sleep_time`` helps.
    """
    try:
        from airflow.models.connection_test import ConnectionTestKey
    except ImportError:
        return None
    return ConnectionTestKey(id="headrace-wake-up")


def may_sleep_for_scheduler() -> bool:
    """Whether an executor may sleep in the scheduler's place while it has no task.

    Not beside others, which may have something to do meanwhile; nor where idle loops are counted, because a loop that
    was woken is none (``airflow scheduler --only-idle``).
    """
    return number_of_executors() == 1 and "--only-idle" not in sys.argv


def number_of_executors() -> int:
    """How many executors the scheduler asks in turn, each team's counted."""
    from airflow.executors.executor_loader import ExecutorLoader

    return len(ExecutorLoader.get_executor_names())


def token(task: str, generator: Any) -> str:
    """What a task that waits to be started shows to the API server when it does, by its task instance's id."""
    from airflow.executors.workloads import ExecuteTask

    return str(ExecuteTask.generate_token(task, generator))


def newest_queued_run() -> datetime | None:
    """When the last of the runs was queued that the scheduler has not started.

    ``None``: there is none, or the database does not say; the scheduler will ask it soon, and knows what to do then.
    """
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from sqlalchemy import func, select
    from sqlalchemy.exc import SQLAlchemyError

    query = select(func.max(DagRun.queued_at)).where(DagRun.state == DagRunState.QUEUED)
    try:
        with create_session(scoped=False) as session:  # ``dag.test`` has one of its own under way
            found: datetime | None = session.scalar(query)
    except SQLAlchemyError:
        return None
    return found


def assigns_ids() -> bool:
    """Whether this Airflow's scheduler gives a task its external executor id when it queues it: from 3.3.

    Before, it takes it from an event of the executor, so that a task queued just before the scheduler was killed has
    none: the next scheduler queues it again.
    """
    from airflow.executors.base_executor import BaseExecutor

    return hasattr(BaseExecutor, "pre_assigns_external_executor_id")


def is_task(key: Any) -> bool:
    """Whether a workload's key is a task instance's."""
    from airflow.models.taskinstancekey import TaskInstanceKey

    return isinstance(key, TaskInstanceKey)


def state_class(key: Any) -> Any:
    """The enumeration that has the states of a workload."""
    from airflow.utils.state import TaskInstanceState

    try:
        from airflow.executors.base_executor import state_class_for_key
    except ImportError:  # before 3.3
        return TaskInstanceState
    return state_class_for_key(key)


def no_longer_running(submissions: Iterable[str]) -> list[str]:
    """Those of the tasks submitted under these external executor ids that the database does not have as under way.

    None, if the database does not say.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    asked = list(submissions)
    under_way = (TaskInstanceState.QUEUED, TaskInstanceState.RUNNING)
    query = select(TaskInstance.external_executor_id).where(
        TaskInstance.external_executor_id.in_(asked), TaskInstance.state.in_(under_way)
    )
    try:
        with create_session(scoped=False) as session:
            found = set(session.scalars(query))
    except SQLAlchemyError:
        return []
    return [submission for submission in asked if submission not in found]
