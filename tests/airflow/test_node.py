"""A node without Airflow: how long its supervisors stay, and whose memory a task cannot read."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator

import pytest
from without_airflow import Node

from headrace.testing import wait_until

MakeNode = Callable[..., Node]

READS = """
import json, signal

def reads(pid):
    found = []
    for name, look in {{"environ": open, "mem": open, "fd/0": os.readlink}}.items():
        try:
            look(f"/proc/{{pid}}/{{name}}")
        except PermissionError:
            continue
        found.append(name)
    return found

child = os.fork() or signal.pause()
found = [reads(pid) for pid in ({daemon}, {supervisor}, child)]
os.kill(child, signal.SIGKILL)
os.wait()
json.dump(found, open({seen!r}, "w"))
"""


class TestIdleSupervisor:
    def test_has_the_next_task(self, make_node: MakeNode) -> None:
        node = make_node(idle_s=3600.0)
        node.run("")
        (first,) = node.status()["supervisors"]
        node.run("")
        assert node.status()["supervisors"] == [first]

    def test_ends_after_a_while(self, make_node: MakeNode) -> None:
        node = make_node(idle_s=0.0)
        node.run("")
        wait_until(lambda: not node.status()["supervisors"], timeout_s=30)
        assert node.run("")["ok"]


def test_a_task_reads_nothing_of_those_that_have_tokens(make_node: MakeNode) -> None:
    node = make_node()
    node.run("")
    (supervisor,) = node.status()["supervisors"]
    seen = node.folder / "seen"
    reads = READS.format(daemon=node.status()["pid"], supervisor=supervisor["pid"], seen=str(seen))
    assert node.run(reads)["ok"], node.log()
    assert json.loads(seen.read_text()) == [[], [], ["environ", "mem", "fd/0"]]


def wait_for_the_next(period_s: float) -> None:
    """Waits until another period of the clock has begun."""
    begun = time.time() // period_s
    wait_until(lambda: time.time() // period_s != begun, timeout_s=30)


class TestAge:
    """Of a parse: what it takes from the clock is not out of date for long."""

    AGES = 100 * 365 * 86400.0
    """Seconds whose multiples are far away."""

    def pids(self, node: Node) -> Iterator[int]:
        file = node.folder / "dag.py"
        file.write_text("")
        for _ in range(2):
            assert node.run("", file)["ok"]
            yield node.zygote(file)["pid"]
            wait_for_the_next(0.5)

    def test_ends_with_the_period_of_the_clock(self, make_node: MakeNode) -> None:
        first, second = self.pids(make_node(zygote_age_s=0.5))
        assert first != second

    @pytest.mark.parametrize("age_s", [AGES, 0.0])
    def test_is_no_other_before_or_without_one(self, make_node: MakeNode, age_s: float) -> None:
        first, second = self.pids(make_node(zygote_age_s=age_s))
        assert first == second

    def test_is_nothing_to_a_file_that_is_not_held(self, make_node: MakeNode) -> None:
        node = make_node(zygote_age_s=0.5)
        file = node.folder / "dag.py"
        file.write_text("raise ValueError")
        for _ in range(2):
            node.run("", file)
            wait_for_the_next(0.5)
        assert node.log().count("parse for themselves") == 1


def test_zygotes_have_more_descriptors_than_their_tasks(make_node: MakeNode) -> None:
    """They hold some for every task; a task has as many as whoever started the daemon."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        node = make_node()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    seen = node.folder / "seen"
    assert node.run(f"import resource\nopen({str(seen)!r}, 'w').write(str(resource.getrlimit(7)))")["ok"]
    assert seen.read_text() == str((soft - 1, hard))
    assert resource.prlimit(node.zygote(None)["pid"], resource.RLIMIT_NOFILE) == (hard, hard)
