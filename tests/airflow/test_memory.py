"""How much memory this process may use, and how much is left of it: in cgroups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

import headrace.cgroups
from headrace_airflow.load import memory_bytes, memory_is_plenty
from headrace_airflow.memory import Cgroup, cgroups, memory_limit_bytes

MIB = 1 << 20
NO_LIMIT = 9223372036854771712
"""What version 1 says where there is none."""


class Tree:
    """Takes the place of /sys/fs/cgroup."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def join(self, *lines: str) -> None:
        (self._root / "self").write_text("".join(f"{line}\n" for line in lines))

    def write_2(self, path: str, limit: int | str, used: int, cache: int = 0) -> None:
        stat = f"anon 1\ninactive_file {cache}"
        self._write(path, {"memory.max": limit, "memory.current": used, "memory.stat": stat})

    def write_1(self, path: str, limit: int, used: int, cache: int = 0) -> None:
        stat = f"inactive_file 0\ntotal_inactive_file {cache}"
        files = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}
        self._write(f"memory/{path}", files)

    def _write(self, path: str, files: dict[str, int | str]) -> None:
        folder = self._root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(f"{content}\n")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setattr(headrace.cgroups, "_ROOT", tmp_path)
    monkeypatch.setattr(headrace.cgroups, "_MEMBERSHIP", tmp_path / "self")
    return Tree(tmp_path)


def test_a_container_sees_its_own_as_the_root(tree: Tree) -> None:
    tree.join("0::/")
    tree.write_2("", 100 * MIB, 60 * MIB, cache=5 * MIB)
    assert cgroups() == [Cgroup(100 * MIB, 45 * MIB)]
    assert memory_bytes() == (100 * MIB, 45 * MIB)
    assert memory_limit_bytes() == 100 * MIB


def test_what_a_service_may_use_is_what_the_tightest_above_it_has_left(tree: Tree) -> None:
    tree.join("0::/system.slice/airflow.service")
    tree.write_2("system.slice/airflow.service", 200 * MIB, 10 * MIB)
    tree.write_2("system.slice", 150 * MIB, 1 * MIB)
    tree.write_2("", 900 * MIB, 890 * MIB)
    assert memory_bytes() == (150 * MIB, 10 * MIB)
    assert memory_limit_bytes() == 150 * MIB


def test_version_1(tree: Tree) -> None:
    tree.join("2:cpu:/elsewhere", "4:memory:/pod/container", "0::/")
    tree.write_1("", NO_LIMIT, 5 * MIB)
    tree.write_1("pod", 300 * MIB, 250 * MIB, cache=20 * MIB)
    tree.write_1("pod/container", NO_LIMIT, 7 * MIB)
    assert cgroups() == [Cgroup(300 * MIB, 70 * MIB)]
    assert memory_bytes() == (300 * MIB, 70 * MIB)


def test_where_nothing_limits_it_is_the_machines(tree: Tree) -> None:
    tree.join("0::/")
    tree.write_2("", "max", 60 * MIB)
    total, free = memory_bytes()
    assert total == memory_limit_bytes()
    assert 0 < free < total


def test_one_that_may_not_be_read_is_left_out(tree: Tree) -> None:
    assert cgroups() == []
    tree.join("0::/gone")
    assert cgroups() == []


@pytest.mark.parametrize(("used_mib", "plenty"), [(900, True), (960, False)])
def test_a_twentieth_is_plenty(tree: Tree, used_mib: int, plenty: bool) -> None:
    tree.join("0::/")
    tree.write_2("", 1000 * MIB, used_mib * MIB)
    assert memory_is_plenty() is plenty
