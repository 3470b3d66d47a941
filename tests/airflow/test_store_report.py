"""What operators see of a store, and its settings."""

from __future__ import annotations

import os
from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace_airflow.memory import memory_limit_bytes, parse_bytes
from headrace_airflow.store.report import by_run, render
from headrace_airflow.store.settings import StoreSettings, from_options

STATUS = {
    "pid": 12, "memory_bytes": 1 << 30, "budget_bytes": 4 << 30, "spilled_bytes": 0, "objects": 3, "url": "/xcom",
    "failed": 1, "reasons": ["OSError: no space left"],
}  # fmt: skip


def an_object(run: str, size: int, place: str = "memory", durable: str = "kept", readers: int = 0) -> dict[str, Any]:
    return {"slot": ["dag", run, "task", -1, "k"], "size": size, "place": place, "durable": durable, "readers": readers}


def test_usage_is_counted_by_run_and_the_largest_comes_first() -> None:
    found = by_run(
        [an_object("a", 10), an_object("b", 5, "file", "failed", 2), an_object("b", 20), an_object("a", 1, "away")]
    )
    assert [usage.run_id for usage in found] == ["b", "a"]
    b, a = found
    assert (b.objects, b.memory_bytes, b.file_bytes, b.copied_bytes, b.not_copied, b.readers) == (2, 20, 5, 20, 1, 2)
    assert (a.objects, a.memory_bytes, a.file_bytes, a.copied_bytes, a.not_copied, a.readers) == (2, 10, 0, 11, 0, 0)


def test_a_table_says_what_is_held_and_what_is_wrong() -> None:
    lines = render(STATUS, by_run([an_object("run_1", 1 << 20)])).splitlines()
    assert lines[0].startswith("Store service 12: 1.0 GiB of 4.0 GiB in memory")
    assert lines[1] == "1 copies could not be made: OSError: no space left"
    assert lines[2].split()[:3] == ["DAG", "run", "values"]
    assert lines[3].split()[:5] == ["dag", "run_1", "1", "1.0", "MiB"]


def test_copies_that_failed_for_several_reasons_are_counted_once() -> None:
    lines = render({**STATUS, "failed": 3, "reasons": ["this", "that"]}, []).splitlines()
    assert lines[1:] == ["3 copies could not be made: this; that"]


def test_an_empty_store_has_no_table() -> None:
    assert len(render({**STATUS, "reasons": []}, []).splitlines()) == 1
    assert render(None, []) == "No store service is at work on this node: nothing is in memory."


def test_copies_are_shown_where_no_service_is_at_work() -> None:
    lines = render(None, by_run([{**an_object("r", 1 << 20, "away"), "slot": ("dag", "r")}])).splitlines()
    assert "nothing is in memory" in lines[0]
    assert lines[2].split()[:2] == ["dag", "r"]


# Settings


def settings_of(**options: str) -> StoreSettings:
    return from_options(options.get, "/home/af")


def test_defaults_stand_under_airflow_home() -> None:
    found = settings_of()
    assert (found.url, found.home) == ("/home/af/headrace/xcom", "/home/af/headrace/node")
    assert 0 < found.budget_bytes < memory_limit_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert StoreSettings.from_json(found.to_json()) == found


def test_options_are_read() -> None:
    found = settings_of(
        xcom_path="s3://bucket/x/", xcom_memory="2GiB", xcom_ttl="60", xcom_former_paths="/a, /b",
        xcom_storage_options='{"anon": true}', xcom_inline_bytes="1k",
    )  # fmt: skip
    assert found.url == "s3://bucket/x"
    assert (found.budget_bytes, found.ttl_s, found.inline_bytes) == (2 << 30, 60.0, 1024)
    assert (found.former_urls, found.storage_options) == (("/a", "/b"), {"anon": True})
    assert StoreSettings.from_json(found.to_json()) == found


def test_memory_may_be_a_share() -> None:
    assert settings_of(xcom_memory="0.25").budget_bytes == int(0.25 * memory_limit_bytes())


@pytest.mark.parametrize(
    "options",
    [
        {"xcom_memory": "much"}, {"xcom_ttl": "-1"}, {"xcom_ttl": "nan"}, {"xcom_collect": "often"},
        {"xcom_storage_options": "[]"}, {"xcom_storage_options": "{"}, {"xcom_inline_bytes": "1 parsec"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_named(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        settings_of(**options)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("10", 10), ("1.5 GiB", 3 << 29), ("2MB", 2_000_000), ("1K", 1024)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size
