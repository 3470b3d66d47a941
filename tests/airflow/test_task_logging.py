"""What tasks log with, set up in their zygote: where a task's records go, and those of what is no task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TASK = """
import logging, os, sys, warnings
from airflow.sdk.execution_time import supervisor
from headrace_airflow import task_logging

task_logging.prepare()
logging.getLogger("tests").info("nobody hears")
pid = os.fork()
if pid == 0:
    task_logging.use()
    supervisor._configure_logs_over_json_channel(int(sys.argv[1]))
    logging.getLogger("tests").info("a task logs")
    warnings.warn("a task warns")
    sys.excepthook(ValueError, ValueError("a task fails"), None)
    os._exit(0)
os.waitpid(pid, 0)
task_logging.undo()
logging.getLogger("tests").warning("a worker logs")
sys.excepthook(ValueError, ValueError("a worker fails"), None)
"""
ELSEWHERE_TOO = """
import os
from airflow.sdk.execution_time import supervisor
from headrace_airflow import task_logging

stock = supervisor._configure_logs_over_json_channel
task_logging.prepare()
task_logging.use()
assert supervisor._configure_logs_over_json_channel is stock
"""
LOGGING_CLASS = """
from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG as LOGGING_CONFIG

class REMOTE_TASK_LOG:
    processors = ()
"""


def run(program: str, home: Path, *descriptors: int, **settings: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, descriptors)],
        env={**os.environ, "AIRFLOW_HOME": str(home), **settings},
        pass_fds=descriptors,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_records_go_where_their_process_says(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        output = run(TASK, tmp_path, file.fileno())
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["event"] for record in records] == ["a task logs", "a task warns", "Unhandled exception"]
    assert "a task fails" in log.read_text()
    assert "a worker logs" in output
    assert "ValueError: a worker fails" in output
    assert "a task" not in output
    assert "nobody hears" not in output


def test_is_not_set_up_for_all_where_logs_go_elsewhere_too(tmp_path: Path) -> None:
    (tmp_path / "where_logs_go.py").write_text(LOGGING_CLASS)
    run(
        ELSEWHERE_TOO,
        tmp_path,
        PYTHONPATH=str(tmp_path),
        AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS="where_logs_go.LOGGING_CONFIG",
    )
