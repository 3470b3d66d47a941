"""The project's own files: the layout, the versions they name, what the wheel holds, what an import costs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import headrace

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
FOLDERS = {"adapters", "core", "plugins", "tests", "compat_suite", "examples", "constraints"}
FILES = {"pyproject.toml", "README.md", "Makefile"}
HIGHER = {("oldest-airflow.txt", "psutil")}
"""Where what is declared beside it begins higher."""
HEAVY = ["dask", "distributed", "matplotlib", "numpy", "pandas", "psutil", "pyarrow", "scipy"]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(project: dict[str, Any], *extras: str) -> list[Requirement]:
    table = project["project"]
    lines = [line for extra in extras for line in table["optional-dependencies"][extra]]
    found = [Requirement(line) for line in [*table["dependencies"], *lines]]
    return [r for r in found if r.name != "headrace" and (r.marker is None or r.marker.evaluate())]


def pins(name: str) -> dict[str, str]:
    """name → version of the lines that apply to this Python."""
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {r.name.lower(): str(r.specifier) for r in found if r.marker is None or r.marker.evaluate()}


def tracked(*patterns: str) -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines()]


def test_nothing_new_at_the_top_level() -> None:
    top = {path.parts[0] for path in tracked()}
    assert {name for name in top if not name.startswith(".")} <= FOLDERS | FILES


def test_one_version_everywhere() -> None:
    assert importlib.metadata.version("headrace") == headrace.__version__


@pytest.mark.parametrize("name", ["latest.txt", "oldest.txt", "oldest-airflow.txt"])
def test_constraints_are_names_and_versions_and_nothing_else(name: str) -> None:
    for line in (ROOT / "constraints" / name).read_text().splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[a-z0-9.]+(; python_version (<|>=) '3\.\d+')?", line), line


@pytest.mark.parametrize(
    ("name", "extras"),
    [("oldest.txt", ("dask", "distributed", "bench", "test")), ("oldest-airflow.txt", ("airflow", "bench-airflow"))],
)
def test_the_oldest_constraints_are_the_lower_ends_of_the_declared_ranges(
    project: dict[str, Any], name: str, extras: tuple[str, ...]
) -> None:
    oldest = pins(name)
    for requirement in requirements(project, *extras):
        (bound,) = requirement.specifier or [None]
        if bound is not None and (name, requirement.name) not in HIGHER:
            assert bound.operator == ">=", requirement
            (pin,) = Requirement(f"x{oldest[requirement.name.lower()]}").specifier
            assert Requirement(f"x=={bound.version}").specifier.contains(pin.version), requirement


def test_the_latest_constraints_pin_everything_declared(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"].keys() - {"peers"}  # those are measured as they come
    declared = {r.name.lower() for r in requirements(project, *extras)}
    assert declared <= set(pins("latest.txt"))


def test_purity_is_checked_for_every_pure_module(project: dict[str, Any]) -> None:
    (contract,) = [c for c in project["tool"]["importlinter"]["contracts"] if "ledger are pure" in c["name"]]
    pure = {
        "sched": "headrace.sched",
        "store/ledger.py": "headrace.store.ledger",
        "stream/machine.py": "headrace.stream.machine",
        "stream/waits.py": "headrace.stream.waits",
    }
    there = {module for path, module in pure.items() if (ROOT / "core" / "headrace" / path).exists()}
    assert there == set(contract["source_modules"])


def test_what_leans_on_airflows_internals_is_listed() -> None:
    source = (ROOT / "adapters/headrace_airflow/internals.py").read_text()
    listed = source.split("\n\n")[1]
    functions = [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    assert sorted(re.findall(r"[a-z_]+(?=[,\n]|$)", listed)) == sorted(n for n in functions if not n.startswith("_"))


def test_a_second_copy_of_the_modules_cannot_be_imported_unnoticed() -> None:
    pytest.importorskip("ruff")
    source = "import core.headrace\nfrom adapters.headrace_dask import get\n"
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "--stdin-filename=tests/x.py", "-"]
    done = subprocess.run(command, input=source, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("TID251") == 2, done.stdout


def test_the_wheel_holds_every_tracked_module_and_nothing_else(project: dict[str, Any], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = [Path(package) for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    expected = {str(path.relative_to(p.parent)) for p in packages for path in tracked(str(p)) if (ROOT / path).exists()}
    assert expected <= packed
    assert {name.split("/")[0] for name in packed} == {package.name for package in packages}
    assert {f"{package.name}/py.typed" for package in packages} <= packed


def test_every_source_root_is_installed(project: dict[str, Any]) -> None:
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    there = {
        str(path.parent) for path in tracked() if re.fullmatch(r"(core|adapters|plugins)/\w+/__init__\.py", str(path))
    }
    assert there == set(packages)


def test_importing_headrace_imports_nothing_heavy() -> None:
    source = f"import sys, headrace; headrace.Settings; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_runtime_needs_neither_dask_nor_numpy() -> None:
    source = (
        "import sys, headrace\n"
        f"sys.modules.update(dict.fromkeys({[m for m in HEAVY if m != 'psutil']}))\n"  # importing any of them raises
        "with headrace.Runtime(lane='processes') as rt:\n"
        "    print(rt.submit(pow, rt.submit(pow, 2, 3), 2).result(60))\n"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("64\n", "")
