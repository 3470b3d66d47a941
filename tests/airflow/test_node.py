"""A node without Airflow: how long its supervisors stay, and whose memory a task cannot read."""

from __future__ import annotations

import json
from collections.abc import Callable

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
