"""Airflow's REST API, as far as running DAGs and looking at them needs it, and what it tells as plain records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

FINISHED = frozenset({"success", "failed"})
"""States that a DAG run does not leave by itself."""
BUSY_LIMIT_S = 30.0
"""How long a database may be too busy to answer."""
PAGE = 100
"""Airflow's ``[api] maximum_page_limit``, as it comes."""


@dataclass(frozen=True, slots=True)
class DagRun:
    """A run of a DAG, as it was when it was asked for."""

    dag_id: str
    run_id: str
    state: str
    queued_at: datetime | None
    start_date: datetime | None
    end_date: datetime | None

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> DagRun:
        times = (_time(data[name]) for name in ("queued_at", "start_date", "end_date"))
        return cls(data["dag_id"], data["dag_run_id"], data["state"], *times)

    @property
    def path(self) -> str:
        return f"/dags/{self.dag_id}/dagRuns/{self.run_id}"

    @property
    def makespan_s(self) -> float:
        """From the moment when it was asked for until Airflow called it ended."""
        if self.queued_at is None or self.end_date is None:
            raise ValueError(f"{self.dag_id} has not ended: {self.state}")
        return (self.end_date - self.queued_at).total_seconds()


@dataclass(frozen=True, slots=True)
class TaskInstance:
    """A task of a DAG run in its newest try. ``map_index`` is -1 unless it is one of a mapped task."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    max_tries: int
    queued_at: datetime | None
    start_date: datetime | None
    end_date: datetime | None
    duration_s: float | None
    pid: int | None
    hostname: str
    executor: str | None
    operator: str
    id: str

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> TaskInstance:
        return cls(
            task_id=data["task_id"],
            map_index=data["map_index"],
            state=data["state"],
            try_number=data["try_number"],
            max_tries=data["max_tries"],
            queued_at=_time(data["queued_when"]),
            start_date=_time(data["start_date"]),
            end_date=_time(data["end_date"]),
            duration_s=data["duration"],
            pid=data["pid"],
            hostname=data["hostname"] or "",
            executor=data["executor"],
            operator=data["operator"] or "",
            id=data["id"],
        )

    @property
    def name(self) -> str:
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"


class ApiError(Exception):
    """The API refused a request; the message has what it said."""


class ApiClient:
    """Blocks in every call.

    Raises:
        httpx.TransportError: the server cannot be reached.
        httpx.HTTPStatusError: it gives no token.
        ApiError: it refuses the request.
    """

    def __init__(self, base_url: str) -> None:
        no_leftovers = httpx.Limits(max_keepalive_connections=0)  # a descriptor lasts no longer than its request
        self._http = httpx.Client(base_url=base_url, timeout=60.0, trust_env=False, limits=no_leftovers)
        self._token = ""

    def close(self) -> None:
        self._http.close()

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **arguments: Any
    ) -> httpx.Response:
        """One request below ``/api/v2``; arguments are httpx's. Gets a token when it has none or a stale one.

        Where the database was busy for too long it asks again: SQLite lets one write at a time; others wait for 5 s.
        """
        deadline = time.monotonic() + BUSY_LIMIT_S
        while True:
            reply = self._request(method, path, headers or {}, arguments)
            if reply.status_code == httpx.codes.UNAUTHORIZED:
                self._token = ""
                reply = self._request(method, path, headers or {}, arguments)
            is_busy = reply.status_code == httpx.codes.INTERNAL_SERVER_ERROR and "Database error" in reply.text
            if not is_busy or time.monotonic() > deadline:
                break
        if reply.is_error:
            raise ApiError(f"{method} {path}: {reply.status_code} {reply.text[:2000]}")
        return reply

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], arguments: Mapping[str, Any]
    ) -> httpx.Response:
        if not self._token:
            self._token = self._http.get("/auth/token").raise_for_status().json()["access_token"]
        ours = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        return self._http.request(method, f"/api/v2{path}", headers={**ours, **headers}, **arguments)

    def get(self, path: str, **parameters: Any) -> Any:
        return self.request("GET", path, params=parameters).json()

    def pages(self, path: str, field: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """The entries of a collection, however many pages it has."""
        offset = 0
        while entries := self.get(path, limit=PAGE, offset=offset, **parameters)[field]:
            yield from entries
            offset += len(entries)
            if len(entries) < PAGE:
                break

    def trigger(self, dag_id: str, conf: Mapping[str, Any], logical_date: datetime | None) -> DagRun:
        body = {"logical_date": logical_date.isoformat() if logical_date else None, "conf": dict(conf)}
        return DagRun.of(self.request("POST", f"/dags/{dag_id}/dagRuns", json=body).json())

    def set_paused(self, dag_id: str, paused: bool) -> None:
        self.request("PATCH", f"/dags/{dag_id}", json={"is_paused": paused})

    def dag_run(self, run: DagRun) -> DagRun:
        return DagRun.of(self.get(run.path))

    def tasks(self, run: DagRun) -> list[TaskInstance]:
        pages = self.pages(f"{run.path}/taskInstances", "task_instances", order_by="id")
        return sorted(map(TaskInstance.of, pages), key=lambda task: (task.task_id, task.map_index))

    def xcom(self, run: DagRun, task_id: str, key: str, map_index: int) -> Any:
        """A value as the database holds it."""
        return self.get(f"{run.path}/taskInstances/{task_id}/xcomEntries/{key}", map_index=map_index)["value"]

    def log(self, run: DagRun, task_id: str, try_number: int, map_index: int) -> list[Any]:
        """The events of a task's log, oldest first: mappings with an ``event`` and further fields."""
        path = f"{run.path}/taskInstances/{task_id}/logs/{try_number}"
        content: list[Any] = self.get(path, full_content="true", map_index=map_index)["content"]
        return content


def as_text(events: list[Any]) -> str:
    """A log as people read it: a line for each event, its message and then its further fields."""
    return "\n".join(_line(event) for event in events)


def errors_in(events: list[Any]) -> list[str]:
    """The exceptions that were logged with events of level ``error``, or the messages of such events without one."""
    found = []
    for event in events:
        if isinstance(event, dict) and event.get("level") == "error":
            details = [f"{error['exc_type']}: {error['exc_value']}" for error in event.get("error_detail") or ()]
            found += details or [str(event.get("event", ""))]
    return found


def _line(event: Any) -> str:
    if not isinstance(event, dict):
        return str(event)
    further = {name: value for name, value in event.items() if name not in ("event", "timestamp")}
    return " ".join([str(event.get("event", "")), *(f"{name}={value}" for name, value in further.items())])


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None
