"""What Airflow loads of this package: a page of its UI.

Every process of Airflow's loads plugins, tasks too: so nothing is imported here that only the page needs.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin


async def _page(scope: Any, receive: Any, send: Any) -> None:
    """The page's application, imported with its first request."""
    from headrace_plugins.page.app import application

    await application()(scope, receive, send)


class HeadracePlugin(AirflowPlugin):
    """A page that shows what Headrace does, in the navigation of Airflow's UI."""

    name = "headrace"
    # Plain lists, as AirflowPlugin declares them.
    fastapi_apps = [{"app": _page, "url_prefix": "/headrace", "name": "Headrace"}]  # noqa: RUF012
    external_views = [  # noqa: RUF012
        # Without a slash before it, it is found wherever [api] base_url says that the UI is.
        {"name": "Headrace", "href": "headrace/", "destination": "nav", "url_route": "headrace"}
    ]
