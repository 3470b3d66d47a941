"""What operators ask of the XCom store: what it holds, and that it gives up what the database no longer refers to.

Needs the metadata database for the second, so it runs where the CLI or the scheduler runs, never in tasks. Deleting an
XCom, a task instance or a run through the REST API or ``airflow db clean`` does not call the XCom backend: without the
collector such values stay until their run's time to live is over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection
from typing import Any, Final

from headrace_airflow import xcom
from headrace_airflow.store import storage
from headrace_airflow.store.client import StoreClient
from headrace_airflow.store.report import RunUsage, by_run, render
from headrace_airflow.xcom_reference import references_in

YOUNG_S: Final = 900.0
"""What was put or used after that long ago is never collected: a row is written a moment after its value."""


def held() -> tuple[dict[str, Any] | None, list[RunUsage]]:
    """The service's status (``None``: there is none on this node), and what is held for each DAG run.

    Durable copies that the service has not heard of count, too: those that an earlier one has made, or another node's.
    """
    settings = xcom.settings()
    with contextlib.closing(StoreClient(settings, starts=False)) as client:
        status, answer = client.ask("status"), client.ask("list")
    known = answer["objects"] if answer else []
    ids = {found["id"] for found in known}
    copies = storage.copies_by_run(settings.url, settings.storage_options)
    others = [
        {
            "slot": storage.run_of(folder), "size": copy.size_bytes, "place": "away", "durable": "kept", "readers": 0,
        }
        for folder, of_run in copies.items() for id, copy in of_run.items() if id not in ids
    ]  # fmt: skip
    return status, by_run([*known, *others])


def show(*, as_json: bool = False) -> str:
    """What ``airflow headrace store`` prints."""
    status, runs = held()
    if as_json:
        return json.dumps({"service": status, "runs": [dataclasses.asdict(usage) for usage in runs]})
    return render(status, runs)


def collect(session: Any, *, young_s: float = YOUNG_S) -> int:
    """Gives up every value that no row of the database refers to; returns how many.

    The place of the durable copies must be this deployment's own: what another one's database refers to would go.

    Args:
        session: of the metadata database; only read from.
        young_s: see ``YOUNG_S``.
    """
    settings = xcom.settings()
    copies = storage.copies_by_run(settings.url, settings.storage_options, young_s)
    removed = 0
    with contextlib.closing(StoreClient(settings, starts=False)) as client:
        known = client.ask("list")
        young = {found["id"] for found in (known["objects"] if known else []) if found["unused_s"] < young_s}
        referred = _referred(session, copies.keys())
        for of_run in copies.values():
            for id in of_run.keys() - young - referred:
                client.delete({"id": id, "url": of_run[id].url})
                removed += 1
    return removed


def _referred(session: Any, folders: Collection[str]) -> set[str]:
    """The ids that the database's rows refer to, of those runs that have copies."""
    from airflow.models.xcom import XComModel
    from sqlalchemy import select

    found: set[str] = set()
    for dag_id, run_id in session.execute(select(XComModel.dag_id, XComModel.run_id).distinct()).all():
        if storage.run_folder(dag_id, run_id) in folders:
            rows = select(XComModel.value).where(XComModel.dag_id == dag_id, XComModel.run_id == run_id)
            for (row,) in session.execute(rows):
                found |= ids_in(row)
    return found


def ids_in(row: Any) -> set[str]:
    """The ids of the objects that one database value refers to."""
    found = set()
    for part in references_in(row):
        with contextlib.suppress(KeyError, TypeError):  # it is damaged: there is nothing that it could refer to
            found.add(str(part["__data__"]["id"]))
    return found
