"""Real Airflows for the tests: two for the whole run, and others for tests that want to see one begin and end.

    airflow_on_sqlite    HeadraceExecutor, LocalExecutor beside it, a team with an executor of its own, HeadraceXCom,
                         bundles of two kinds; ``airflow`` is its short name
    airflow_on_postgres  HeadraceExecutor alone, with schedulers that are quick to notice the death of another
    make_airflow         makes one for a test, or for a module with ``make_shared_airflow``
    sqlite, postgres     where their databases come from; started when first asked for

All of them have the DAGs of ``dags/``. Everything that an Airflow starts belongs to a process family of its own, which
ends with it: the fixtures that look for leftovers do not see it, and need not.

For tests that need no Airflow ``make_node`` makes a node without one, from daemon to task (without_airflow.py).

For tests of the XCom store alone, ``settings`` and ``client`` are those of a store of the test's own.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from without_airflow import Node

    from headrace_airflow.store.client import StoreClient
    from headrace_airflow.store.settings import StoreSettings

sys.path.insert(0, str(Path(__file__).parent))  # for stores.py, aheads.py, without_airflow.py

DAGS = Path(__file__).parent / "dags"
HEADRACE = "headrace_airflow.HeadraceExecutor"
SEVERAL = f"headrace:{HEADRACE},LocalExecutor;blue={HEADRACE}"

MakeAirflow = Callable[..., Any]
Lasting = Callable[[], AbstractContextManager[None]]

if importlib.util.find_spec("airflow") is None and "CI" not in os.environ:
    # An environment for the Dask side alone. In CI the tests are collected all the same, and fail.
    collect_ignore_glob = ["test_*.py"]
else:
    # Whoever imports Airflow in the tests' process makes it write its files; not into somebody's home.
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="hr-unit-")
    atexit.register(shutil.rmtree, os.environ["AIRFLOW_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A real Airflow takes its time to come up, all the more beside other things."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[StoreSettings]:
    from stores import own_store

    with own_store(tmp_path) as found:
        yield found


@pytest.fixture
def client(settings: StoreSettings) -> Iterator[StoreClient]:
    from headrace_airflow.store.client import StoreClient

    with closing(StoreClient(settings)) as found:
        yield found


@pytest.fixture
def make_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Node]]:
    """``make_node(rest_s=…, idle_s=…, **settings)``: a node without Airflow that ends with the test."""
    import without_airflow

    from headrace_airflow import client

    monkeypatch.setattr(client, "_BOOTSTRAP", without_airflow.BOOTSTRAP.format("become_daemon"))
    with ExitStack() as stack:

        def make(rest_s: float = 3600.0, idle_s: float = 10.0, **settings: Any) -> Node:
            node = without_airflow.Node(tmp_path, rest_s, idle_s, **settings)
            stack.callback(node.end)
            return node

        yield make


@pytest.fixture(scope="session")
def sqlite(lasting: Lasting) -> Iterator[Any]:
    from headrace_airflow.bench.databases import Sqlite

    with lasting():
        databases = Sqlite()
    with databases:
        yield databases


@pytest.fixture(scope="session")
def postgres(lasting: Lasting) -> Iterator[Any]:
    """Not skipped where there is no server: an error says where one comes from."""
    from headrace_airflow.bench.databases import Postgres

    with ExitStack() as stack:
        with lasting():
            databases = stack.enter_context(Postgres(durable=False))
        yield databases


def _maker(request: pytest.FixtureRequest, stack: ExitStack) -> MakeAirflow:
    from headrace_airflow.bench.airflow import RealAirflow

    def make(database: str = "sqlite", *, executor: str = HEADRACE, **options: Any) -> RealAirflow:
        databases = request.getfixturevalue(database)
        return stack.enter_context(RealAirflow(databases, executor=executor, **{"dags": DAGS, **options}))

    return make


@pytest.fixture
def make_airflow(request: pytest.FixtureRequest) -> Iterator[MakeAirflow]:
    """``make_airflow(database="sqlite", executor=…, dags=…, settings=…)``: a RealAirflow that ends with the test."""
    with ExitStack() as stack:
        yield _maker(request, stack)


@pytest.fixture(scope="module")
def make_shared_airflow(request: pytest.FixtureRequest) -> Iterator[MakeAirflow]:
    """The same, for fixtures of a module."""
    with ExitStack() as stack:
        yield _maker(request, stack)


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings by which Variables and Connections come from the environment, and from a secrets backend."""
    folder = tmp_path_factory.mktemp("secrets")
    files = {"variables": {"from_backend": "kept"}, "connections": {"from_backend": "http://vault/"}}
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return {
        "AIRFLOW_VAR_FROM_ENVIRONMENT": "value",
        "AIRFLOW_CONN_FROM_ENVIRONMENT": "http://host/",
        "MINE": "mine",
        "AIRFLOW__SECRETS__BACKEND": "airflow.secrets.local_filesystem.LocalFilesystemBackend",
        "AIRFLOW__SECRETS__BACKEND_KWARGS": json.dumps(
            {f"{name}_file_path": f"{folder}/{name}.json" for name in files}
        ),
    }


class Repository:
    """A git repository with one DAG file, whose tasks return the word of its version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._git("init", "--quiet", "--initial-branch", "main")

    def commit(self, word: str) -> None:
        template = Path(__file__).parent / "versions.py.txt"
        (self.folder / "versions.py").write_text(template.read_text().replace("WORD", word))
        self._git("add", "versions.py")
        self._git("-c", "user.name=Tests", "-c", "user.email=tests@localhost", "commit", "--quiet", "--message", word)

    def _git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.folder, check=True)


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    made = Repository(tmp_path_factory.mktemp("repository"))
    made.commit("first")
    return made


@pytest.fixture(scope="session")
def team_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DAGs of the team ``blue``."""
    folder = tmp_path_factory.mktemp("blue")
    (folder / "of_blue.py").write_text((DAGS / "gate.py").read_text().replace("gate", "of_blue"))
    return folder


@pytest.fixture(scope="session")
def airflow_on_sqlite(
    request: pytest.FixtureRequest,
    sqlite: Any,
    lasting: Lasting,
    secrets: dict[str, str],
    repository: Repository,
    team_folder: Path,
) -> Iterator[Any]:
    from headrace_airflow.bench.airflow import COMPONENTS

    local = "airflow.dag_processing.bundles.local.LocalDagBundle"
    bundles = [
        {"name": "dags-folder", "classpath": local, "kwargs": {"refresh_interval": 2}},
        {"name": "blue", "classpath": local, "kwargs": {"path": str(team_folder)}, "team_name": "blue"},
        {
            "name": "repository",
            "classpath": "airflow.providers.git.bundles.git.GitDagBundle",
            "kwargs": {"repo_url": str(repository.folder), "tracking_ref": "main", "refresh_interval": 2},
        },
    ]
    settings = {
        **secrets,
        "AIRFLOW__CORE__XCOM_BACKEND": "headrace_airflow.HeadraceXCom",
        "AIRFLOW__CORE__MULTI_TEAM": "True",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "3",
        "AIRFLOW__WORKERS__MISSING_DAG_RETRIES": "0",
    }
    with ExitStack() as stack:
        with lasting():
            shared = _maker(request, stack)("sqlite", executor=SEVERAL, settings=settings, components=())
            shared.environment["AIRFLOW__BLUE___CORE__EXECUTION_API_SERVER_URL"] = f"{shared.home.url}/execution/"
            shared.sql("INSERT INTO team (name) VALUES ('blue')")
            shared.start(*COMPONENTS)
        yield shared


@pytest.fixture(scope="session")
def airflow(airflow_on_sqlite: Any) -> Any:
    return airflow_on_sqlite


@pytest.fixture(scope="session")
def airflow_on_postgres(
    request: pytest.FixtureRequest, postgres: Any, lasting: Lasting, secrets: dict[str, str]
) -> Iterator[Any]:
    settings = {
        **secrets,
        # A scheduler that is gone counts as gone after 5 s, and those after it look at once.
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "5",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "1",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    }
    with ExitStack() as stack:
        with lasting():
            shared = _maker(request, stack)("postgres", settings=settings)
        start = shared.start

        def start_for_all(*names: str, **options: Any) -> None:
            with lasting():  # who restarts a component does so for those that come after him
                start(*names, **options)

        shared.start = start_for_all
        yield shared
