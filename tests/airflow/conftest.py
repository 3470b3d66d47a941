"""Real Airflows for the tests: one for the whole run where a test only runs DAGs, one of its own where it breaks some.

    airflow           HeadraceExecutor and HeadraceXCom on SQLite, the DAGs of ``dags/``; for the whole run
    make_airflow      makes one for a test, or for a module with ``make_shared_airflow``
    sqlite, postgres  where their databases come from; for the whole run, started when first asked for

Everything that an Airflow starts belongs to a process family of its own, which ends with it: the fixtures that look
for leftovers do not see it, and need not.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

DAGS = Path(__file__).parent / "dags"
HEADRACE = "headrace_airflow.HeadraceExecutor"
XCOM = {"AIRFLOW__CORE__XCOM_BACKEND": "headrace_airflow.HeadraceXCom"}

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
def airflow(request: pytest.FixtureRequest, sqlite: Any, lasting: Lasting) -> Iterator[Any]:
    with ExitStack() as stack:
        with lasting():
            shared = _maker(request, stack)(settings=XCOM)
        yield shared
