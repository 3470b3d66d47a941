"""What becomes of workloads when processes of the node end that should not, on a node without Airflow."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import without_airflow

from headrace.testing import wait_until
from headrace_airflow import client
from headrace_airflow.bench.processes import has_ended
from headrace_airflow.client import Setup
from headrace_airflow.settings import Settings
from headrace_airflow.wire import Message

KILLS_ITS_ZYGOTE = "os.kill(os.getppid(), 9); import signal; signal.pause()"


class Node:
    """A daemon, and the scheduler that it has."""

    def __init__(self, folder: Path, rest_s: float) -> None:
        self.folder = folder
        self.faults = folder / "faults"
        self.faults.mkdir()
        self._log = folder / "daemon.log"
        environ = {**os.environ, "FAULTS": str(self.faults), "REST_S": str(rest_s)}
        setup = Setup(Settings(cpus=4, tasks=4), environ)
        self.daemon = client.connect_or_launch(folder / "node", setup, self._log, "scheduler")
        self._submitted = 0

    def submit(self, does: str, file: Path | None = None) -> str:
        self._submitted += 1
        key = str(self._submitted)
        ti = {"dag_id": "dag", "run_id": "run", "task_id": key, "map_index": 0}
        workload = {"type": "ExecuteTask", "ti": ti, "does": does, "log_path": f"{key}.log"}
        message = {"t": "submit", "id": key, "name": key, "workload": workload, "server": ""}
        self.daemon.send({**message, "file": None if file is None else ["", "", str(file)]})
        return key

    def heard(self, kind: str, key: str) -> Message:
        """Waits until the daemon says this of a workload."""
        while True:
            received = self.daemon.wait(30.0)
            assert received is not None, self.log()
            message, _ = received
            if (message["t"], message["id"]) == (kind, key):
                return message

    def run(self, does: str, file: Path | None = None) -> Message:
        """How a workload ended."""
        return self.heard("ended", self.submit(does, file))

    def status(self) -> Message:
        reader = client.connect(self.folder / "node", "reader")
        assert reader is not None
        try:
            status = client.ask(reader, {"t": "status"})
            assert status is not None
            return status
        finally:
            reader.close()

    def zygote(self, file: Path | None) -> Message:
        """The one of a file, or the bare one."""
        found: list[Any] = [z for z in self.status()["zygotes"] if (z["file"] or [None])[-1] == (file and str(file))]
        (one,) = found
        return one

    def have_bare_ones_die(self) -> None:
        """Until the daemon starts no other one."""
        (self.faults / "bare_dies").touch()
        wait_until(lambda: self.zygote(None)["pid"] != 0, timeout_s=30)
        os.kill(self.zygote(None)["pid"], signal.SIGKILL)
        wait_until(lambda: "tasks that need the bare zygote fail" in self.log(), timeout_s=30)

    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        self.daemon.send({"t": "stop"})
        wait_until(lambda: not client.running(self.folder / "node"), timeout_s=30)
        self.daemon.close()


MakeNode = Callable[..., Node]


@pytest.fixture
def make_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeNode]:
    monkeypatch.setattr(client, "_BOOTSTRAP", without_airflow.BOOTSTRAP.format("become_daemon"))
    nodes: list[Node] = []

    def make(rest_s: float = 3600.0) -> Node:
        nodes.append(Node(tmp_path, rest_s))
        return nodes[-1]

    yield make
    for node in nodes:
        node.end()


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
