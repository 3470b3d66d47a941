"""The page's application: its files, and the data that it shows. Every request is an authenticated user's."""

from __future__ import annotations

import functools
import socket
import time
from pathlib import Path
from typing import Final

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag, requires_access_view
from airflow.utils.session import create_session
from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi.responses import JSONResponse

from headrace_airflow import observe
from headrace_plugins.page import view
from headrace_plugins.page.runs import Runs, files
from headrace_plugins.page.shared import Shared

_STATIC: Final = Path(__file__).parent / "static"
_KINDS: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS: Final = {
    # Whatever a DAG may be called: nothing but these files is ever run, or shown as anything but text.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'"
    ),
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


@functools.cache
def application() -> FastAPI:
    """What stands under the plugin's prefix. Demands what Airflow's own views of running tasks demand."""
    may_look = (
        requires_access_view(AccessView.CLUSTER_ACTIVITY),
        requires_access_dag("GET", DagAccessEntity.TASK_INSTANCE),
    )
    app = FastAPI(openapi_url=None, dependencies=[Depends(check) for check in may_look])
    app.get("/data")(_Data().answer)
    app.get("/{name:path}")(_file)
    return app


class _Data:
    """All that the page shows, as JSON."""

    def __init__(self) -> None:
        self._daemons = Shared(observe.daemons)
        self._store = Shared(observe.store)
        self._runs = Runs()

    def answer(self, user: GetUserDep) -> JSONResponse:
        dags = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
        with create_session() as session:
            sight = view.Sight(dags, files(session, dags))
            runs = self._runs.newest(session, dags)
        found = {
            "now": time.time(),
            "host": socket.gethostname(),
            "daemons": [view.daemon(daemon, sight) for daemon in self._daemons.get()],
            "store": view.store(self._store.get(), sight),
            "runs": runs,
        }
        return JSONResponse(found, headers=_HEADERS)


def _file(name: str) -> Response:
    path = _STATIC / (name or "index.html")
    if path.parent != _STATIC or not path.is_file():
        raise HTTPException(404)
    return Response(path.read_bytes(), media_type=_KINDS[path.suffix], headers=_HEADERS)
