"""What tasks log with, set up in their zygote: where a task's records go, and those of what is no task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = """
import logging
import structlog
from airflow.sdk import BaseOperator

class Operator(BaseOperator):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.log.warning("an operator is made")

operator = Operator(task_id="operator")
structured = structlog.get_logger("structured")
structured.info("a file is parsed")
logging.getLogger().setLevel(logging.WARNING)
"""
ZYGOTE = f"""
import logging, os, sys, warnings
from airflow.sdk.execution_time import supervisor
from headrace_airflow import ahead, task_logging

def in_a_fork(act):
    pid = os.fork()
    if pid == 0:
        act()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

task_logging.prepare()
{FILE}
task_log, log_ahead, output_ahead = map(int, sys.argv[1:])
"""
TASK = """
def task():
    task_logging.use()
    supervisor._configure_logs_over_json_channel(task_log)
    logging.getLogger("tests").warning("a task logs")
    logging.getLogger("tests").info("too little")
    operator.log.error("an operator logs")
    structured.info("its file logs")
    warnings.warn("a task warns")
    sys.excepthook(ValueError, ValueError("a task fails"), None)

in_a_fork(task)
"""
AHEAD = """
def run():
    ahead._capture(log_ahead, output_ahead)
    logging.getLogger("tests").warning("a function logs")
    operator.log.error("an operator logs")
    print("a function prints")

in_a_fork(run)
"""
WORKER = """
task_logging.undo()
logging.getLogger("tests").warning("a worker logs")
operator.log.error("an operator logs in a worker")
sys.excepthook(ValueError, ValueError("a worker fails"), None)
"""
REMOTE = """
from airflow.sdk.execution_time import supervisor
from headrace_airflow import task_logging

stock = supervisor._configure_logs_over_json_channel
task_logging.prepare()
task_logging.use()
print("set up:", supervisor._configure_logs_over_json_channel is not stock)
"""
LOGGING_CLASS = """
from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG as LOGGING_CONFIG

class Remote:
    {processors}

REMOTE_TASK_LOG = Remote()
"""


class Logs:
    """What a program has written, to its output and to the files of its task and of what ran ahead."""

    def __init__(self, program: str, home: Path) -> None:
        paths = [home / name for name in ("task", "ahead", "output")]
        descriptors = [os.open(path, os.O_RDWR | os.O_CREAT) for path in paths]
        self.output = run(program, home, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self.task, self.ahead = (records(path.read_text()) for path in paths[:2])
        self.output_ahead = paths[2].read_text()


def run(program: str, home: Path, *descriptors: int, **settings: str) -> str:
    as_in_production = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, descriptors)],
        env={**as_in_production, "AIRFLOW_HOME": str(home), **settings},
        pass_fds=descriptors,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def events(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(record["level"], record["event"]) for record in found]


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return Logs(ZYGOTE + TASK + AHEAD + WORKER, tmp_path_factory.mktemp("logs"))


def test_a_task_s_records_go_to_its_log_whoever_makes_them(logs: Logs) -> None:
    assert events(logs.task) == [
        ("warning", "a task logs"),
        ("error", "an operator logs"),
        ("info", "its file logs"),
        ("warning", "a task warns"),
        ("critical", "Unhandled exception"),
    ]
    assert "a task fails" in str(logs.task[-1])
    assert "a task" not in logs.output


def test_what_runs_ahead_keeps_its_records(logs: Logs) -> None:
    assert events(logs.ahead) == [("warning", "a function logs"), ("error", "an operator logs")]
    assert logs.output_ahead == "a function prints\n"
    assert "a function" not in logs.output


def test_what_a_file_logs_while_it_is_parsed_goes_to_the_zygote_s_output(logs: Logs) -> None:
    parsed = events(records(logs.output))[:2]
    assert parsed == [("warning", "an operator is made"), ("info", "a file is parsed")]


def test_a_worker_s_records_go_to_its_output(logs: Logs) -> None:
    assert all(line in logs.output for line in ("a worker logs", "an operator logs in a worker"))
    assert "ValueError: a worker fails" in logs.output


@pytest.mark.parametrize(
    ("processors", "is_set_up"),
    [("processors = ()", True), ("processors = property(lambda self: 1 / 0)", False)],
    ids=["a store of files", "one that is sent every record"],
)
def test_is_set_up_for_all_unless_records_go_elsewhere_one_by_one(
    tmp_path: Path, processors: str, is_set_up: bool
) -> None:
    (tmp_path / "where_logs_go.py").write_text(LOGGING_CLASS.format(processors=processors))
    output = run(
        REMOTE,
        tmp_path,
        PYTHONPATH=str(tmp_path),
        AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS="where_logs_go.LOGGING_CONFIG",
    )
    assert f"set up: {is_set_up}" in output
