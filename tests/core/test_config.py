"""Settings: where values come from, in which order, and what is refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import cgroups
from headrace.config import LANES, Settings, available_cores, lane_named, resolve
from headrace.errors import ConfigError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int, str, dict[str, str]], None]:
    """Makes this process see so many cores, be in such cgroups, and find these files in /sys/fs/cgroup."""

    def pretend(cores: int, membership: str, files: dict[str, str]) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)))
        monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
        monkeypatch.setattr(cgroups, "_MEMBERSHIP", tmp_path / "membership")
        for name, content in {"membership": membership, **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)

    return pretend


@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [
        (8, "max 100000\n", 8),
        (8, "200000 100000\n", 2),
        (8, "150000 100000\n", 2),  # a core and a half keep two threads busy
        (8, "10000 100000\n", 1),
        (2, "800000 100000\n", 2),
        (4, "", 4),
        (4, "nonsense here", 4),
    ],
)
def test_cores_are_the_affinity_capped_by_the_quota(machine: Any, cores: int, quota: str, expected: int) -> None:
    machine(cores, "0::/\n", {"cpu.max": quota})
    assert available_cores() == expected
    assert Settings().num_workers == expected


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("", {}, 8),
        ("0::/system.slice/a.service\n", {"system.slice/a.service/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2),
        (
            "4:cpu,cpuacct:/pod\n3:memory:/pod\n0::/\n",
            {"cpu,cpuacct/pod/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n"},
            4,
        ),
        ("4:cpu:/docker/1\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_quotas_of_services_and_containers(machine: Any, membership: str, files: dict[str, str], expected: int) -> None:
    machine(8, membership, files)
    assert available_cores() == expected


def test_defaults_are_valid_and_frozen() -> None:
    settings = resolve(environ={})
    assert settings == Settings()
    assert settings.lane == "auto"
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.lane = "threads"


def test_arguments_come_before_environment_before_overlay_before_defaults() -> None:
    overlay = {"lane": "inline", "num-workers": 3, "max_deaths": 7}
    environ = {"HEADRACE_LANE": "threads", "HEADRACE_NUM_WORKERS": "5", "PATH": "/bin"}
    settings = resolve({"lane": "processes", "num_workers": None}, overlay, environ)
    assert (settings.lane, settings.num_workers, settings.max_deaths) == ("processes", 5, 7)
    assert settings.small_bytes == Settings().small_bytes


def test_the_environment_of_the_process_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_IDLE_TIMEOUT_S", "1.5")
    assert resolve().idle_timeout_s == 1.5


@pytest.mark.parametrize(
    ("text", "expected"), [("1", True), ("True", True), (" yes ", True), ("0", False), ("FALSE", False), ("no", False)]
)
def test_a_switch_may_be_spelt_in_several_ways(text: str, expected: bool) -> None:
    assert resolve(environ={"HEADRACE_CHECK": text}).check is expected


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lane", " Threads ", "threads"),
        ("num_workers", "12", 12),
        ("inline_below_s", "2e-4", 2e-4),
        ("ahead_s", "1", 1.0),
        ("small_bytes", "0", 0),
    ],
)
def test_text_is_parsed_by_the_kind_of_the_setting(name: str, text: str, value: object) -> None:
    assert getattr(resolve(environ={f"HEADRACE_{name.upper()}": text}), name) == value
    assert getattr(resolve(overlay={name.replace("_", "-"): text}, environ={}), name) == value


@pytest.mark.parametrize("text", ["Threads", "THREADS", " threads "])
def test_the_letters_of_a_lane_may_be_large_or_small_wherever_it_is_named(text: str) -> None:
    assert lane_named(text) == "threads"
    assert Settings(lane=text).lane == "threads"
    assert resolve({"lane": text}, environ={}).lane == "threads"
    assert resolve(overlay={"lane": text}, environ={}).lane == "threads"
    assert resolve(environ={"HEADRACE_LANE": text}).lane == "threads"


@pytest.mark.parametrize("wrong", ["thread", "", None, 5, ["threads"]])
def test_what_names_no_lane_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="lane must be one of auto"):
        lane_named(wrong)


def test_a_whole_number_will_do_for_seconds() -> None:
    assert resolve({"ahead_s": 2}, environ={}).ahead_s == 2


@pytest.mark.parametrize(
    ("arguments", "overlay", "environ", "message"),
    [
        ({"lanes": "auto"}, {}, {}, "unknown argument 'lanes'; known: .*lane.*num_workers"),
        ({}, {"worker-count": 2}, {}, "unknown setting 'worker_count'"),
        ({"lane": "gpu"}, {}, {}, "lane must be one of auto, inline, threads, processes, not 'gpu'"),
        ({"num_workers": -1}, {}, {}, "num_workers must be at least 1, not -1"),
        ({"max_deaths": 0}, {}, {}, "max_deaths must be at least 1, not 0"),
        ({"ahead_s": float("nan")}, {}, {}, "ahead_s must not be negative, not nan"),
        ({"small_bytes": -1}, {}, {}, "small_bytes must not be negative"),
        ({}, {}, {"HEADRACE_AHEAD_S": "-0.1"}, "ahead_s must not be negative"),
        (
            {},
            {},
            {"HEADRACE_NUM_WORKERS": "many"},
            "environment variable HEADRACE_NUM_WORKERS must be of type int, not 'many'",
        ),
        ({}, {"check": "perhaps"}, {}, "setting check must be of type bool, not 'perhaps'"),
        ({}, {"num-workers": 1.5}, {}, "setting num_workers must be of type int, not 1.5"),
    ],
)
def test_what_cannot_be_used_is_named(
    arguments: dict[str, Any], overlay: dict[str, Any], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(arguments, overlay, environ)


def test_an_unknown_variable_of_the_environment_is_left_to_others() -> None:
    assert resolve(environ={"HEADRACE_SOMETHING_ELSE": "1"}) == Settings()


@given(
    st.fixed_dictionaries(
        {
            "lane": st.sampled_from(LANES),
            "num_workers": st.integers(1, 10_000),
            "inline_below_s": st.floats(0, 10),
            "ahead_s": st.floats(0, 10),
            "small_bytes": st.integers(0, 2**40),
            "max_deaths": st.integers(1, 100),
            "idle_timeout_s": st.floats(0, 1e9),
            "check": st.booleans(),
        }
    )
)
def test_every_settings_object_survives_the_way_through_the_environment(values: dict[str, Any]) -> None:
    wanted = Settings(**values)
    environ = {
        f"HEADRACE_{field.name.upper()}": str(getattr(wanted, field.name)) for field in dataclasses.fields(wanted)
    }
    assert resolve(environ=environ) == wanted


def test_an_empty_variable_is_not_set() -> None:
    assert resolve(environ={"HEADRACE_LANE": "", "HEADRACE_NUM_WORKERS": ""}) == Settings()


@pytest.mark.parametrize("section", ["threads", 5, ["lane"]])
def test_a_section_that_holds_no_names_is_refused(section: Any) -> None:
    with pytest.raises(ConfigError, match="names and values"):
        resolve(overlay=section, environ={})
