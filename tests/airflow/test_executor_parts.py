"""The executor's small parts: settings and needs, places, reading lines, heads of values, environments."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies
from pydantic import JsonValue, TypeAdapter

from headrace.errors import ConfigError
from headrace_airflow import client, places, streams
from headrace_airflow.memory import parse_bytes
from headrace_airflow.rendering import bounded, head
from headrace_airflow.settings import Needs, needs_of, resolve
from headrace_airflow.streams import LONGEST_LINE, line_reader


class TestSettings:
    def test_follow_the_machine(self) -> None:
        found = resolve(None, 32)
        assert found.tasks == 32
        assert found.cpus >= 1.5
        assert found.memory_bytes > 2**20

    def test_are_read_from_the_section(self) -> None:
        section = {"cpus": "7.5", "memory": "2GiB", "close_gap": "False", "xcom_path": "/elsewhere"}
        found = resolve(section, 32)
        assert (found.cpus, found.memory_bytes, found.close_gap) == (7.5, 2**31, False)

    @pytest.mark.parametrize(
        "section", [{"cpus": "many"}, {"cpus": "-1"}, {"memory": "1 lot"}, {"linger": "nan"}, {"at_end": "burn"}]
    )
    def test_that_cannot_be_used_are_refused(self, section: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match=rf"\[headrace\] {next(iter(section))} must "):
            resolve(section, 32)

    @pytest.mark.parametrize(("text", "number"), [("4GiB", 2**32), ("500 MB", 5 * 10**8), ("12", 12), ("1.5KiB", 1536)])
    def test_amounts_of_memory(self, text: str, number: int) -> None:
        assert parse_bytes(text) == number


class TestNeeds:
    @pytest.mark.parametrize("config", [None, {}, {"KubernetesExecutor": {}}, {"headrace": {}}])
    def test_none(self, config: Any) -> None:
        assert needs_of(config) == Needs()

    def test_declared(self) -> None:
        assert needs_of({"headrace": {"cpus": 2, "memory": "4GiB"}}) == Needs(2.0, 2**32)

    @pytest.mark.parametrize(
        "declared", [{"cores": 2}, {"cpus": "two"}, {"cpus": -1}, {"cpus": float("nan")}, {"memory": "much"}, 3]
    )
    def test_that_cannot_be_understood(self, declared: Any) -> None:
        with pytest.raises(ConfigError, match="executor_config"):
            needs_of({"headrace": declared})


class TestPlaces:
    def test_are_private_and_one_for_each_identity(self, tmp_path: Path) -> None:
        base = str(tmp_path / "base")
        found = {places.folder("/home", database, team, base) for database in ("a", "b") for team in (None, "x")}
        assert len(found) == 4
        assert places.folder("/home", "a", None, base) in found
        assert {os.stat(place).st_mode & 0o777 for place in found} == {0o700}

    def test_a_foreign_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path)
        with pytest.raises(ConfigError, match="directory"):
            places.folder("/home", "a", None, str(tmp_path / "link"))

    def test_a_path_too_long_for_a_socket_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="shorter"):
            places.folder("/home", "a", None, str(tmp_path / ("x" * 100)))


class TestLineReader:
    def read(self, *chunks: bytes, collector: str = "collect") -> list[bytes]:
        lines: list[bytes] = []

        def collect() -> Generator[None, bytes, None]:
            while True:
                lines.append(bytes((yield)))

        ours, theirs = socket.socketpair()
        with ours, theirs:
            lines_of = collect()
            lines_of.__name__ = collector
            read, _ = line_reader(lines_of, on_close=lambda sock: None)
            for chunk in chunks:
                for start in range(0, len(chunk), 1 << 16):
                    theirs.sendall(chunk[start : start + (1 << 16)])
                    assert read(ours)
            theirs.close()
            assert not read(ours)
        return lines

    @given(strategies.lists(strategies.binary(min_size=1, max_size=50), max_size=20))
    def test_gives_lines_whatever_the_pieces(self, chunks: list[bytes]) -> None:
        *lines, rest = b"".join(chunks).split(b"\n")
        assert self.read(*chunks) == [line + b"\n" for line in lines] + ([rest] if rest else [])

    def test_a_long_line_takes_time_in_proportion(self) -> None:
        def seconds(size: int) -> float:
            data = b"x" * size
            began = time.process_time()
            self.read(data)
            return time.process_time() - began

        seconds(1 << 20)
        assert seconds(1 << 25) < 32 * max(seconds(1 << 20), 0.01)

    def test_says_whether_it_holds_a_part(self) -> None:
        def take() -> Generator[None, bytes | bytearray, None]:
            while True:
                yield

        ours, theirs = socket.socketpair()
        with ours, theirs:
            read, _ = line_reader(take(), on_close=lambda sock: None)
            held = []
            for chunk in (b"whole\n", b"be", b"gun\nand", b" ended\n"):
                theirs.sendall(chunk)
                read(ours)
                held.append(not read.is_between)
        assert held == [False, True, True, False]

    def test_a_line_without_an_end_is_handed_on_in_pieces(self) -> None:
        pieces = self.read(b"x" * (3 * LONGEST_LINE))
        assert len(pieces) >= 3
        assert sum(map(len, pieces)) == 3 * LONGEST_LINE

    def test_a_record_that_is_too_long_is_left_out_and_the_next_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "LONGEST_RECORD", 1 << 16)
        first, told, last, cut = self.read(
            b"{}\n", b"x" * (1 << 18) + b"\n[]\n", b"y" * (1 << 17), collector="process_log_messages"
        )
        assert (first, last) == (b"{}\n", b"[]\n")
        assert f"A record of {(1 << 18) + 1} bytes" in json.loads(told)["event"]
        assert f"A record of {1 << 17} bytes" in json.loads(cut)["event"]


class TestHead:
    @pytest.mark.parametrize(
        "value", [1, None, "text", b"bytes", [1, [2]], (1, 2), {"b": 1, "a": [2]}, {3, 1}, {"a": {"b": "c"}}]
    )
    def test_leaves_small_values_alone(self, value: Any) -> None:
        assert head(value, 1000) == value

    @pytest.mark.parametrize(
        "value",
        [
            "x" * 10**8,
            b"x" * 10**8,
            list(range(10**6)),
            {str(n): n for n in range(10**5)},
            set(range(10**5)),
            [["x" * 10**7] * 10] * 10,
        ],
    )
    def test_cuts_large_ones(self, value: Any) -> None:
        cut = head(value, 1000)
        assert type(cut) is type(value)
        assert 1000 <= len(str(cut)) < 20_000

    def test_begins_as_the_whole_does(self) -> None:
        value: list[Any] = [1, "two", {"b": [3] * 1000, "a": "x" * 5000}, (4,)]
        serialized = [1, "two", dict(sorted(value[2].items())), (4,)]
        assert str(head(value, 3000))[:3000] == str(serialized)[:3000]

    def test_of_lists_in_themselves_ends(self) -> None:
        endless: list[Any] = [1]
        endless += [endless, endless]
        assert str(head(endless, 1000)).startswith("[1, [1, [1, ")

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (2**64 - 1, "18446744073709551615"), (-(10**5000), "<integer of 16610 bits>"), (float("nan"), "nan"),
            ("lone \ud800", "lone \\ud800"), ({float("inf")}, "'inf'"), ({"\udfff": 1}, "{'\\\\udfff': 1}"),
        ],
        ids=["integer", "huge", "nan", "surrogate", "set", "key"],
    )  # fmt: skip
    def test_can_be_sent(self, value: Any, text: str) -> None:
        shown = shows([value])
        assert text in (shown if isinstance(shown, str) else str(shown[0]))  # Airflow 3.2: with a set, text as a whole
        assert json.loads(msgspec.json.encode(msgspec.msgpack.decode(msgspec.msgpack.encode(shown)))) == shown

    def test_of_what_is_too_deep_can_be_sent(self) -> None:
        deep: Any = "bottom"
        for _ in range(400):
            deep = [deep]
        assert "'...'" in str(TypeAdapter(JsonValue).validate_python(shows(deep)))

    def test_of_what_cannot_be_shown_says_so(self) -> None:
        class Shy:
            def __str__(self) -> str:
                raise LookupError

        assert shows([Shy()]) == "<cannot be shown: LookupError>"

    def test_of_a_polars_frame_is_its_text(self) -> None:
        polars = pytest.importorskip("polars")
        assert "shape: (3, 1)" in shows([polars.DataFrame({"a": [1, 2, 3]})])[0]


def shows(value: Any) -> Any:
    """What becomes of a template field."""
    from airflow.sdk.execution_time import task_runner

    return bounded(task_runner._serialize_template_field)(value, "op_args")


def test_what_shares_equal_pages_has_its_forks_do_so_too() -> None:
    program = """
import ctypes, os
from headrace_airflow import processes

processes.share_equal_pages()
if os.fork():
    os.wait()
else:
    print(ctypes.CDLL(None).prctl(68, 0, 0, 0, 0))  # PR_GET_MEMORY_MERGE
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout in ("1\n", "-1\n")  # -1: this kernel has no such thing


def test_a_daemon_is_told_by_what_tasks_would_see(tmp_path: Path) -> None:
    config = tmp_path / "airflow.cfg"
    setup = client.Setup(resolve(None, 32), {"MINE": "x", "SHLVL": "1"}, "", str(config))

    def fingerprint(**changes: Any) -> str:
        return dataclasses.replace(setup, **changes).fingerprint

    assert fingerprint() == fingerprint(environ={"SHLVL": "2", "MINE": "x", "AIRFLOW__API__SECRET_KEY": "new"})
    others = [
        fingerprint(environ={"MINE": "y"}),
        fingerprint(settings=resolve(None, 16)),
        fingerprint(store="{}"),
        fingerprint(config=__file__),
        fingerprint(),
    ]
    assert len(set(others)) == len(others)


def test_tasks_do_not_inherit_what_would_let_them_pose_as_others() -> None:
    environ = {
        "AIRFLOW__API_AUTH__JWT_SECRET": "x",
        "AIRFLOW__API_AUTH__JWT_SECRET_CMD": "x",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://user:password@host/db",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD": "x",
        "_AIRFLOW_PROCESS_CONTEXT": "server",
        "MINE": "y",
    }
    found = client.environment(environ)
    assert found.pop("MINE") == "y"
    assert list(found) == ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    assert "password" not in str(found)
