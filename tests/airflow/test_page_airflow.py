"""The page in Airflow's UI, in front of a real Airflow: who gets its data, what they say, what a browser shows.

Beside the Airflow's own API server there is one whose users have passwords, and which stands under a path.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from headrace.store.pickling import pack
from headrace.testing import wait_until
from headrace_airflow.bench.airflow import AIRFLOW, RealAirflow
from headrace_airflow.bench.client import DagRun
from headrace_airflow.bench.waiting import free_ports
from headrace_airflow.store.client import StoreClient
from headrace_airflow.store.ledger import Slot
from headrace_airflow.store.settings import StoreSettings

pytestmark = pytest.mark.shares_runtime

DAGS = Path(__file__).parent / "page_dags"
SETTINGS = {
    "AIRFLOW__CORE__XCOM_BACKEND": "headrace_airflow.HeadraceXCom",
    "AIRFLOW__HEADRACE__XCOM_MEMORY": "256MiB",
    "AIRFLOW__SCHEDULER__ALLOWED_RUN_ID_PATTERN": ".*",
}
MARKUP = "<img src=x onerror=alert(1)>"
SCRIPT = "<script>alert(1)</script>"
NEEDS_BROWSER = "HEADRACE_REQUIRE_BROWSER" in os.environ  # set by .ci/run


@pytest.fixture(scope="module")
def airflow(make_shared_airflow: Any) -> RealAirflow:
    return make_shared_airflow(dags=DAGS, settings=SETTINGS)


class Site:
    """An API server whose users have passwords."""

    def __init__(self, airflow: RealAirflow) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}/flow"
        self.password = secrets.token_hex(8)
        passwords = airflow.home.folder / "passwords.json"
        passwords.write_text(f'{{"admin": "{self.password}", "viewer": "{self.password}"}}')
        more = {
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": self.url,
        }
        log = airflow.home.logs / "site.txt"
        process = airflow.family.start([*AIRFLOW, "api-server"], env={**airflow.environment, **more}, log=log)

        def answers() -> bool:
            process.check("the site")
            try:
                return self.get("/api/v2/version").is_success
            except httpx.TransportError:
                return False

        airflow.wait_until(answers, "the site up")

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers=headers, trust_env=False, timeout=30)

    def token(self, user: str) -> str:
        credentials = {"username": user, "password": self.password}
        reply = httpx.post(f"{self.url}/auth/token", json=credentials, trust_env=False, timeout=30)
        return str(reply.raise_for_status().json()["access_token"])

    def data(self, user: str = "viewer") -> dict[str, Any]:
        """What the page gets."""
        reply = self.get("/headrace/data", Authorization=f"Bearer {self.token(user)}")
        found: dict[str, Any] = reply.raise_for_status().json()
        return found


@pytest.fixture(scope="module")
def site(airflow: RealAirflow) -> Site:
    return Site(airflow)


@pytest.fixture
def held(airflow: RealAirflow, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A run of which one task runs and one waits, until its ``end`` is called; its id looks like markup."""
    airflow.wait_for_dags({"page_held"})
    airflow.api.set_paused("page_held", False)
    body = {"dag_run_id": f"{MARKUP}{tmp_path.name}", "logical_date": None, "conf": {"file": str(tmp_path / "open")}}
    run = DagRun.of(airflow.api.request("POST", "/dags/page_held/dagRuns", json=body).json())
    yield SimpleNamespace(run=run, end=(tmp_path / "open").touch)
    (tmp_path / "open").touch()
    wait_until(lambda: state_of(airflow, run) == "success", timeout_s=120)


def state_of(airflow: RealAirflow, run: DagRun) -> str:
    runs = airflow.api.pages(f"/dags/{run.dag_id}/dagRuns", "dag_runs")
    return next(found["state"] for found in runs if found["dag_run_id"] == run.run_id)


class TestData:
    @pytest.mark.parametrize("path", ["", "data", "page.js", "no-such-file"])
    def test_nobody_gets_in_without_a_token(self, site: Site, path: str) -> None:
        assert site.get(f"/headrace/{path}").status_code == 401
        assert site.get(f"/headrace/{path}", Authorization="Bearer wrong").status_code == 403
        assert site.get(f"/headrace/{path}", Cookie="_token=wrong").status_code in (401, 403)

    def test_only_the_pages_own_files_are_served(self, site: Site) -> None:
        headers = {"Authorization": f"Bearer {site.token('viewer')}"}
        page = site.get("/headrace/", **headers)
        assert page.headers["content-type"].startswith("text/html")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert site.get("/headrace/page.js", **headers).headers["content-type"].startswith("text/javascript")
        for path in ("app.py", "..%2fapp.py", "%2e%2e/app.py", "%2fetc%2fpasswd", "openapi.json", "docs"):
            assert site.get(f"/headrace/{path}", **headers).status_code == 404, path

    def test_tasks_that_run_and_wait(self, site: Site, held: Any) -> None:
        wait_until(lambda: len(tasks_of(site, held.run)) == 2 and running(site, held.run), timeout_s=60)
        waiting, busy = sorted(tasks_of(site, held.run), key=lambda task: task["pid"])
        assert (busy["state"], busy["waits_for"], busy["cpus"]) == ("running", "", 1000)
        assert busy["since"] <= busy["started"]
        assert (waiting["state"], waiting["waits_for"], waiting["started"]) == ("waiting", "cpus", None)
        (daemon,) = site.data()["daemons"]
        assert (daemon["state"], daemon["team"], daemon["schedulers"]) == ("running", None, 1)
        assert busy["id"] in [supervisor["task"] for supervisor in daemon["supervisors"]]
        assert {"bare": None, "ready": "dags-folder page.py"}.items() <= {
            zygote["state"]: zygote["file"] for zygote in daemon["zygotes"]
        }.items()
        assert 0 < daemon["memory"]["free_bytes"] < daemon["memory"]["total_bytes"]

    def test_gaps_and_the_store(self, site: Site, airflow: RealAirflow) -> None:
        run = airflow.run("page_steps")
        found = site.data()
        check_gaps(found, run, "make", "use")
        (usage,) = [usage for usage in found["store"]["runs"] if usage["run_id"] == run.run_id]
        assert (usage["dag_id"], usage["objects"]) == ("page_steps", 1)
        assert usage["memory_bytes"] + usage["file_bytes"] > 8_000_000

    def test_gaps_on_postgres(self, airflow_on_postgres: RealAirflow) -> None:
        run = airflow_on_postgres.run("arithmetic")
        check_gaps(data_of(airflow_on_postgres), run, "three", "double")

    def test_each_team_has_a_daemon(self, airflow_on_sqlite: RealAirflow) -> None:
        airflow_on_sqlite.run("arithmetic")
        found = data_of(airflow_on_sqlite)["daemons"]
        assert {daemon["team"]: daemon["state"] for daemon in found} == {None: "running", "blue": "running"}
        assert len({daemon["pid"] for daemon in found}) == 2

    def test_a_daemon_that_was_silent_is_seen_soon_after_it_has_recovered(self, site: Site) -> None:
        (daemon,) = site.data()["daemons"]
        os.kill(daemon["pid"], signal.SIGSTOP)
        try:
            wait_until(lambda: site.data()["daemons"][0]["state"] == "silent", timeout_s=60)
        finally:
            os.kill(daemon["pid"], signal.SIGCONT)
        wait_until(lambda: site.data()["daemons"][0]["state"] == "running", timeout_s=20)

    def test_no_secret_is_in_it(self, site: Site, airflow: RealAirflow, held: Any) -> None:
        wait_until(lambda: running(site, held.run), timeout_s=60)
        text = site.get("/headrace/data", Authorization=f"Bearer {site.token('admin')}").text
        hidden = [value for name, value in airflow.environment.items() if name.endswith(("_KEY", "_SECRET"))]
        assert len(hidden) == 3
        assert [word for word in [*hidden, "token", "eyJ", str(airflow.home.folder), "sqlite:"] if word in text] == []


def data_of(airflow: RealAirflow) -> dict[str, Any]:
    """What its own API server gives, which takes everybody for an admin."""
    token = httpx.get(f"{airflow.home.url}/auth/token", trust_env=False).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    reply = httpx.get(f"{airflow.home.url}/headrace/data", headers=headers, trust_env=False, timeout=30)
    found: dict[str, Any] = reply.raise_for_status().json()
    return found


def check_gaps(found: dict[str, Any], run: DagRun, *task_ids: str) -> None:
    """The run has two tasks, of which the second waits for the first."""
    shown = next(shown for shown in found["runs"] if shown["run_id"] == run.run_id)
    first, second = shown["tasks"]
    assert (shown["state"], first["task_id"], second["task_id"]) == ("success", *task_ids)
    assert first["gap_s"] is None
    assert second["gap_s"] == pytest.approx(second["start"] - first["end"])
    assert shown["gaps"] == {"count": 1, "median_s": second["gap_s"], "longest_s": second["gap_s"]}


def tasks_of(site: Site, run: DagRun) -> list[dict[str, Any]]:
    (daemon,) = site.data()["daemons"]
    return [task for task in daemon["tasks"] if task["name"] and f" {run.run_id} " in task["name"]]


def running(site: Site, run: DagRun) -> bool:
    return any(task["state"] == "running" for task in tasks_of(site, run))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium. Where tests must not be skipped its absence is an error."""
    program = shutil.which("chromium")
    if program is None:
        if NEEDS_BROWSER:
            pytest.fail("there is no chromium: apt-get install chromium", pytrace=False)
        pytest.skip("there is no chromium (Debian's package of that name)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def session(browser: Any, site: Site) -> Iterator[Any]:
    """A browser in which somebody has logged in."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(f"{site.url}/")
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", site.password)
    page.click("button[type=submit]")
    page.get_by_role("link", name="Headrace").wait_for()
    page.close()
    yield context
    context.close()


@pytest.fixture
def shown(session: Any, site: Site) -> Iterator[SimpleNamespace]:
    """The page, as it is reached from the navigation. Nothing that it does may make the browser complain."""
    page = session.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.on("dialog", lambda dialog: (errors.append("a script ran"), dialog.dismiss()))
    page.goto(f"{site.url}/")
    page.get_by_role("link", name="Headrace").click()
    frame = page.frame_locator("iframe[title=Headrace]")
    frame.locator("main").wait_for()
    yield SimpleNamespace(page=page, frame=frame)
    page.close()
    assert errors == []


class TestInBrowser:
    def test_a_running_task_appears_and_vanishes(self, shown: Any, held: Any) -> None:
        rows = shown.frame.locator(".tasks tbody tr", has_text=held.run.run_id)
        busy, waiting = (
            rows.filter(has=shown.page.get_by_role("cell", name=state, exact=True)) for state in ("running", "waiting")
        )
        busy.wait_for(timeout=60_000)
        assert "page_held." in busy.inner_text()
        assert waiting.locator("td").last.inner_text() == "cpus"
        worker = shown.frame.locator(".workers tbody tr", has_text=held.run.run_id)
        assert "supervisor" in worker.inner_text()
        held.end()
        rows.first.wait_for(state="detached", timeout=60_000)

    def test_the_stores_size_and_the_timeline(self, shown: Any, airflow: RealAirflow) -> None:
        run = airflow.run("page_steps")
        row = shown.frame.locator("#store-runs tbody tr", has_text=run.run_id)
        row.wait_for(timeout=60_000)
        assert "page_steps" in row.inner_text()
        assert "7.6 MiB" in row.inner_text()
        block = shown.frame.locator("details", has_text=run.run_id)
        assert "1 gap: median" in block.locator("summary").inner_text()
        if block.get_attribute("open") is None:
            block.locator("summary").click()
        block.locator("svg .bar").nth(1).wait_for()
        assert block.locator("svg .bar.success").count() == 2
        assert block.locator("svg .gap").count() == 1

    def test_names_that_look_like_markup_are_shown_as_text(self, shown: Any, airflow: RealAirflow, held: Any) -> None:
        """Airflow refuses such a DAG id, so it is put where a later, or careless, Airflow would have put it."""
        with sqlite3.connect(airflow.database_url.removeprefix("sqlite:///")) as database:
            database.execute("PRAGMA busy_timeout = 30000")
            columns = [column for _, column, *_ in database.execute("PRAGMA table_info(dag)") if column != "dag_id"]
            names = ", ".join(columns)
            database.execute(
                f"INSERT INTO dag (dag_id, {names}) SELECT ?, {names} FROM dag WHERE dag_id = 'page_held'", (SCRIPT,)
            )
        database.close()
        base = airflow.home.folder / "headrace"
        store = StoreClient(StoreSettings(str(base / "node"), str(base / "xcom"), "", 0), starts=False)
        store.put(Slot(SCRIPT, MARKUP, "task", -1, "key"), pack(b"x" * 1000, "key"), "bytes", "")
        store.close()
        row = shown.frame.locator("#store-runs tbody tr", has_text=SCRIPT)
        row.wait_for(timeout=60_000)
        assert row.locator("td").first.inner_text() == SCRIPT
        shown.frame.locator(".tasks tbody tr", has_text=MARKUP).first.wait_for(timeout=60_000)
        assert shown.frame.locator("img, main script").count() == 0

    def test_light_and_dark_as_the_ui_is(self, shown: Any) -> None:
        grounds = {}
        for scheme in ("light", "dark"):
            shown.page.emulate_media(color_scheme=scheme)
            shown.frame.locator(f":root[data-theme={scheme}]").wait_for(state="attached")
            grounds[scheme] = shown.frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
        assert grounds == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}

    def test_it_is_there_again_after_a_reload(self, shown: Any) -> None:
        shown.page.reload()
        shown.frame.locator("main").wait_for()

    def test_a_hidden_page_asks_for_nothing(self, session: Any, site: Site) -> None:
        page = session.new_page()
        page.clock.install()
        asked: list[str] = []
        page.on("request", lambda request: request.url.endswith("/data") and asked.append(request.url))
        with page.expect_response("**/data"):
            page.goto(f"{site.url}/headrace/")
        page.locator("main").wait_for()
        with page.expect_response("**/data"):
            page.clock.run_for(2_500)
        hide(page, True)
        before = len(asked)
        page.clock.run_for(60_000)
        assert len(asked) == before
        with page.expect_response("**/data"):
            hide(page, False)
        page.close()

    def test_a_session_that_is_over_shows_nothing(self, browser: Any, site: Site) -> None:
        context = browser.new_context(extra_http_headers={"Authorization": f"Bearer {site.token('viewer')}"})
        page = context.new_page()
        page.goto(f"{site.url}/headrace/")
        page.locator("main").wait_for()
        context.set_extra_http_headers({})
        page.get_by_text("Your session is over").wait_for()
        assert page.locator("main").is_hidden()
        context.close()

    def test_a_daemon_that_does_not_answer_and_none(self, shown: Any, site: Site, airflow: RealAirflow) -> None:
        (daemon,) = site.data()["daemons"]
        os.kill(daemon["pid"], signal.SIGSTOP)
        try:
            shown.frame.get_by_text("daemon on").filter(has_text="does not answer").wait_for(timeout=60_000)
        finally:
            os.kill(daemon["pid"], signal.SIGCONT)
        airflow.stop("scheduler")
        subprocess.run([*AIRFLOW, "headrace", "stop"], env=airflow.environment, check=True, timeout=90)
        try:
            shown.frame.get_by_text("No Headrace daemon runs on").wait_for(timeout=60_000)
            assert "airflow scheduler" in shown.frame.locator("#daemons").inner_text()
        finally:
            airflow.start("scheduler")
        shown.frame.get_by_text("cpus in use").wait_for(timeout=60_000)


def hide(page: Any, hidden: bool) -> None:
    """As if its tab had gone to the background, or come back."""
    page.evaluate(
        "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )
