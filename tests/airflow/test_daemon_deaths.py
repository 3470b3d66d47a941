"""What becomes of workloads when processes of the node end that should not, on a node without Airflow."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from without_airflow import Node, waits_for

from headrace.testing import wait_until
from headrace_airflow.bench.processes import has_ended
from headrace_airflow.wire import Message

MakeNode = Callable[..., Node]

KILLS_ITS_ZYGOTE = "os.kill(os.getppid(), 9); import signal; signal.pause()"


class TestBareZygote:
    def test_that_always_dies_is_not_replaced_for_ever(self, make_node: MakeNode) -> None:
        node = make_node()
        assert node.run("")["ok"]
        node.have_bare_ones_die()
        for _ in range(3):
            end = node.run("")
            assert not end["ok"]
            assert "no process that this task could start from" in end["info"]
            assert end["log_path"] == f"{end['id']}.log"
        assert node.log().count("bare zygote ended by itself: killed by SIGKILL") == 3

    def test_leaves_tasks_of_files_alone(self, make_node: MakeNode) -> None:
        node = make_node()
        (file := node.folder / "dag.py").touch()
        assert node.run("", file)["ok"]
        node.have_bare_ones_die()
        assert node.run("", file)["ok"]

    def test_is_tried_again_when_it_has_rested_and_a_task_needs_it(self, make_node: MakeNode) -> None:
        node = make_node(rest_s=0.0)
        node.have_bare_ones_die()
        (node.faults / "bare_dies").unlink()
        assert node.run("")["ok"]
        assert node.log().count("bare zygote ended by itself") == 3

    def test_that_its_tasks_kill_is_always_replaced(self, make_node: MakeNode) -> None:
        node = make_node()
        for _ in range(5):
            assert node.run(KILLS_ITS_ZYGOTE)["info"] == "-9"
        assert node.run("")["ok"]


class TestFile:
    def test_that_ends_its_zygote_is_held_as_soon_as_it_is_mended(self, make_node: MakeNode) -> None:
        node = make_node()
        file = node.folder / "dag.py"
        file.write_text("import os; os._exit(3)")
        assert node.run("", file)["ok"], "it starts from the bare zygote"
        assert "parsing it ended the process: exit code 3" in node.zygote(file)["unfit"]
        first = node.zygote(file)["pid"]
        assert node.run("", file)["ok"]
        assert node.zygote(file)["pid"] == first, "it is not parsed again for every task"
        file.write_text("")
        assert node.run(f"open({str(node.folder / 'parent')!r}, 'w').write(str(os.getppid()))", file)["ok"]
        zygote = node.zygote(file)
        assert (zygote["unfit"], zygote["pid"]) == ("", int((node.folder / "parent").read_text()))


class TestNoMoreProcesses:
    """Where the machine, or a limit of the user's, allows no other process."""

    def test_for_a_task_ends_only_that_one(self, make_node: MakeNode) -> None:
        end = refused_by("zygotes", make_node())
        assert "No process could be started for the task: [Errno 11]" in end["info"]

    def test_for_a_supervisor_ends_only_its_task(self, make_node: MakeNode) -> None:
        node = make_node()
        refused_by("origin", node)
        assert "headrace: no supervisor could be started: [Errno 11]" in node.log()


def refused_by(who: str, node: Node) -> Message:
    """How a task ends for which these may not fork; one that runs goes on, and so do those that come later."""
    gate = node.folder / "gate"
    running = node.submit(waits_for(gate))
    node.heard("started", running)
    node.have_refused(who)
    end = node.run("")
    assert (end["ok"], end["log_path"]) == (False, f"{end['id']}.log")
    node.have_allowed(who)
    assert node.run("")["ok"]
    gate.touch()
    assert node.heard("ended", running)["ok"]
    return end


class TestSupervisor:
    def test_whose_death_is_to_be_told_in_the_log_of_its_task(self, make_node: MakeNode) -> None:
        node = make_node()
        key = node.submit("import signal; signal.pause()")
        node.heard("started", key)
        (task,) = node.status()["tasks"]
        os.kill(task["supervisor_pid"], signal.SIGKILL)
        end = node.heard("ended", key)
        assert (end["ok"], end["log_path"]) == (False, f"{key}.log")
        assert "supervisor ended by itself, and the task with it: killed by SIGKILL" in end["info"]
        wait_until(lambda: has_ended(task["pid"]), timeout_s=30)
