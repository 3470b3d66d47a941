"""The benchmark and the demonstration on Airflow: what they say about what they measured, and that they measure."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from headrace_airflow.bench import cli, demo, report
from headrace_airflow.bench.demo import Outcome
from headrace_airflow.bench.records import Cell, Report
from headrace_airflow.bench.workloads import BY_NAME, DAGS

MACHINE = {"cores": 2, "memory_gb": 24.0}
VERSIONS = {"python": "3.11.7", "apache-airflow": "3.3.2"}


def measured(**cells: Cell) -> Report:
    return Report("sqlite", MACHINE, VERSIONS, rounds=3, cells={"chain": cells})


class TestReport:
    def test_shows_medians_and_ratios_to_stock(self) -> None:
        found = measured(
            local=Cell(makespans_s=[20.0, 30.0, 21.0], cpu_s=[0.2]), headrace=Cell(makespans_s=[4.2, 3.0, 9.0])
        )
        lines = [line.split() for line in report.lines(found, ["local", "headrace"])]
        assert ["chain", "of", "20", "trivial", "tasks", "21.00", "4.20", "(0.20)"] in lines
        assert ["chain", "of", "20", "trivial", "tasks", "200", "-"] in lines
        assert not any("PSS" in line for line in report.lines(found, ["local"]))

    def test_says_what_failed_and_compares_nothing_with_it(self) -> None:
        found = measured(local=Cell(makespans_s=[20.0], error="no luck"), headrace=Cell(makespans_s=[4.0]))
        lines = list(report.lines(found, ["local", "headrace"]))
        assert any(line.split()[-2:] == ["failed", "4.00"] for line in lines)
        assert lines[-1] == "! local, chain: no luck"

    def test_shows_how_long_the_slowest_tenth_takes(self) -> None:
        found = measured(local=Cell(tasks_s=[0.1] * 19 + [5.1] * 3))
        lines = [line.split() for line in report.lines(found, ["local"])]
        assert ["chain", "of", "20", "trivial", "tasks", "100"] in lines
        assert ["chain", "of", "20", "trivial", "tasks", "5,100"] in lines

    def test_goes_into_json_as_it_is(self) -> None:
        found = json.loads(json.dumps(measured(local=Cell(makespans_s=[20.0])).as_json()))
        assert found["cells"]["chain"]["local"]["makespans_s"] == [20.0]


def test_every_workload_has_its_dag() -> None:
    sources = "\n".join(path.read_text() for path in DAGS.glob("*.py"))
    assert ast.parse(sources)
    for workload in BY_NAME.values():
        assert workload.dag_id in sources


def test_names_that_are_not_known_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--workloads", "chain,nonsense"])
    assert "unknown: nonsense; known: chain, fan" in capsys.readouterr().err


class TestDemo:
    @staticmethod
    def outcome(**changes: Any) -> dict[str, Outcome]:
        values = {
            "dag_id": "d",
            "state": "success",
            "why": "",
            "makespan_s": 8.0,
            "tasks": {"a": ("success", 1), "b": ("success", 1)},
            "results": {"b": [1, 2]},
        }
        return {"d": Outcome(**{**values, **changes})}

    def test_finds_no_fault_in_the_same(self) -> None:
        faster = self.outcome(makespan_s=2.0)
        assert demo.compare(self.outcome(), faster) == []
        assert demo.table(self.outcome(), faster)[2].split() == ["d", "8.00", "2.00", "0.25"]

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"tasks": {"a": ("success", 1), "b": ("success", 2)}}, "! d: other states or tries of b"),
            ({"tasks": {"a": ("success", 1)}}, "! d: other states or tries of b"),
            ({"results": {"b": [1, 3]}}, "! d: b is [1, 3], not [1, 2]"),
            ({"state": "failed", "why": "no luck"}, "! d ended as failed: no luck"),
        ],
    )
    def test_finds_what_differs(self, changes: dict[str, Any], fault: str) -> None:
        assert demo.compare(self.outcome(), self.outcome(**changes)) == [fault]


def test_measures_a_real_airflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--database", "sqlite", "--rounds", "1", "--variants", "headrace", "--workloads", "chain"]
    assert cli.main([*arguments, "--json", str(file)]) == 0
    cell = json.loads(file.read_text())["cells"]["chain"]["headrace"]
    assert 0 < cell["makespans_s"][0] < 120
    assert 0 < cell["cpu_s"][0] < 5
    assert len(cell["tasks_s"]) == BY_NAME["chain"].tasks
    assert all(0 < task_s < 120 for task_s in cell["tasks_s"])
    assert "chain of 20 trivial tasks" in capsys.readouterr().out
