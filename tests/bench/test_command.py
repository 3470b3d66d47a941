"""``headrace``: what is built in, what packages add, and ``headrace bench`` from its options to its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import pytest

import headrace
import headrace_dask
from headrace import cli
from headrace.testing import wait_until
from headrace_dask.bench.cli import main as bench

FEW = ["--repeats", "1", "--memory", "none", "--schedulers", "sync,threads"]


def test_version_help_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"headrace {headrace.__version__}\n"
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines()]
    assert ["bench", "compares", "schedulers"] in [row[:3] for row in rows]
    assert {"status", "bench-airflow"} <= {row[0] for row in rows if row}
    assert cli.main(["nosuch"]) == 2
    assert "no command 'nosuch'; there are: bench, bench-airflow, status" in capsys.readouterr().err


def test_only_the_command_that_is_asked_for_is_imported() -> None:
    code = "import sys; from headrace.cli import main; main(['status']); sys.exit('headrace_dask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.shares_runtime
def test_status_shows_what_runs_and_what_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go = tmp_path / "go"

    def hold() -> int:
        wait_until(go.exists)
        return 1

    def compute() -> None:
        graph = {"held-back": (hold,), "next": (str, "held-back")}
        with dask.config.set({"headrace.lane": "threads"}):
            results.append(headrace_dask.get(graph, "next"))

    results: list[str] = []
    computing = threading.Thread(target=compute)
    computing.start()
    shown = ""
    end_s = time.monotonic() + 30
    while "waits for" not in shown and time.monotonic() < end_s:
        assert cli.main(["status", str(os.getpid())]) == 0
        shown = capsys.readouterr().out
    go.touch()
    computing.join(30)
    assert results == ["1"]
    assert shown.startswith(f"process {os.getpid()}: ")
    assert "next is waiting, waits for held-back" in shown


def test_status_of_another_version_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("headrace.observe.status.read_status", lambda: [{"pid": 7, "settings": "unheard of"}])
    assert cli.main(["status"]) == 0
    assert "process 7: runs another version" in capsys.readouterr().out


def test_status_as_json_and_with_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), list)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["status", "--nosuch"])
    assert stopped.value.code == 2


@pytest.mark.usefixtures("fonts")
def test_bench_of_a_users_graph_writes_its_files(graphs: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", "out/figures.json", "--chart", "out/chart.png"]
    assert bench(["--graph", f"{graphs}:chain", "--graph", f"{graphs}:array", "--lanes", "auto", *FEW, *files]) == 0
    shown = capsys.readouterr().out
    assert "users_graphs:array" in shown
    assert "HEADRACE" in shown
    figures = json.loads(Path("out/figures.json").read_text())
    assert set(figures["workloads"]) == {f"{graphs}:chain", f"{graphs}:array"}
    cells = figures["workloads"][f"{graphs}:chain"]["cells"]
    assert {name: cell["status"] for name, cell in cells.items()} == dict.fromkeys(
        ("sync", "threads", "headrace:auto"), "ok"
    )
    assert Path("out/chart.png").stat().st_size > 5_000


def test_bench_fails_if_headrace_differs_from_stock(graphs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["--graph", f"{graphs}:differing", "--lanes", "inline", *FEW]) == 1
    shown = capsys.readouterr().out
    assert "! users_graphs:differing on headrace:inline: its result differs from that of sync" in shown
    assert "MISSED Headrace finishes with the results of stock" in shown


def test_a_graph_that_fails_everywhere_is_not_headraces_fault(graphs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["--graph", f"{graphs}:failing", "--lanes", "threads", *FEW]) == 0
    assert "! users_graphs:failing on headrace:threads: ValueError: not today" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workloads", "nosuch"], "unknown workload nosuch; known: inc10k"),
        (["--schedulers", "nosuch"], "unknown scheduler nosuch; known: sync"),
        (["--lanes", "nosuch"], "unknown scheduler headrace:nosuch"),
        (["--graph", "nosuch"], "module:function"),
        (["--repeats", "-1"], "must be 0 or more"),
        (["--bound", "0"], "must be more than 0"),
    ],
)
def test_bench_refuses_what_it_does_not_know(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def without_numpy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that find dask, but none of the libraries that its collections need."""
    folder = tmp_path_factory.mktemp("without_numpy")
    (folder / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find_spec = PathFinder.find_spec\n"
        "def find_others(name, *where):\n"
        "    hidden = name.partition('.')[0] in ('numpy', 'pandas', 'pyarrow', 'matplotlib')\n"
        "    return None if hidden else find_spec(name, *where)\n"
        "PathFinder.find_spec = find_others\n"
    )
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_a_users_graph_is_compared_without_numpy(graphs: str, without_numpy: dict[str, str]) -> None:
    names = [f"{graphs}:chain", f"{graphs}:numbers"]
    asked = [option for name in names for option in ("--graph", name)]
    command = [sys.executable, "-m", "headrace.cli", "bench", *asked, "--lanes", "auto", *FEW]
    done = subprocess.run(
        [*command, "--json", "figures.json"], env=without_numpy, timeout=60, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    workloads = json.loads(Path("figures.json").read_text())["workloads"]
    assert [cell["status"] for name in names for cell in workloads[name]["cells"].values()] == ["ok"] * 6


@pytest.mark.parametrize("arguments", [[], ["--workloads", "inc10k"], ["--help"], ["--graph", "a:b", "--demo"]])
def test_what_needs_more_than_dask_says_which_extra_has_it(arguments: list[str], without_numpy: dict[str, str]) -> None:
    command = [sys.executable, "-m", "headrace.cli", "bench", *arguments]
    done = subprocess.run(command, env=without_numpy, timeout=60, capture_output=True, text=True)
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert "pip install 'headrace[bench]'" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bench_leaves_nothing_behind(graphs: str, number: signal.Signals) -> None:
    # That no child is left is what every test is held to.
    command = [sys.executable, "-m", "headrace.cli", "bench", "--graph", f"{graphs}:slow", "--lanes", "", *FEW]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_until(Path("running").exists, timeout_s=60)
        process.send_signal(number)
        assert process.wait(30) == 130
