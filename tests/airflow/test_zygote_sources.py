"""What a parse was made from, watched in a process of its own: audit hooks cannot be removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

from headrace_airflow.sources import changed, looked_at, signature

WATCHED = """
import json, sys, time
from headrace_airflow.sources import Watch
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
import socket
watch = Watch()
try:
    exec(sys.argv[2])
except FileNotFoundError:
    pass
sources = watch.stop()
with open(sys.argv[1] + "/not_while_parsing") as file:
    file.read()
print(json.dumps([sources, watch.unrepeatable]))
"""


def watch(folder: Path, source: str) -> tuple[list[Any], str]:
    (folder / "not_while_parsing").touch()
    for path in folder.iterdir():  # long ago
        os.utime(path, (1e9, 1e9))
    command = [sys.executable, "-c", WATCHED, str(folder), source]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    sources, unrepeatable = json.loads(done.stdout)
    return sources, unrepeatable


def names(folder: Path, sources: list[Any]) -> set[str]:
    return {os.path.relpath(path, folder) for path in looked_at(sources) if Path(path).is_relative_to(folder)}


def test_imported_modules_and_what_they_import(tmp_path: Path) -> None:
    (tmp_path / "outer.py").write_text("import inner")
    (tmp_path / "inner.py").write_text("")
    sources, unrepeatable = watch(tmp_path, "import outer")
    assert names(tmp_path, sources) == {"outer.py", "inner.py"}
    assert changed(sources) is None
    assert unrepeatable == ""


def test_data_files_and_listed_folders(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "parts").mkdir()
    path = str(tmp_path)
    sources, _ = watch(tmp_path, f"import os; open('{path}/config.yaml').read(); os.listdir('{path}/parts')")
    assert names(tmp_path, sources) == {"config.yaml", "parts"}
    (tmp_path / "parts" / "new").touch()
    assert changed(sources) == str(tmp_path / "parts")


def test_a_file_that_was_not_there(tmp_path: Path) -> None:
    sources, _ = watch(tmp_path, f"open('{tmp_path}/maybe').read()")
    assert changed(sources) is None
    (tmp_path / "maybe").touch()
    assert changed(sources) == str(tmp_path / "maybe")


def test_files_that_are_written_do_not_count(tmp_path: Path) -> None:
    sources, _ = watch(tmp_path, f"open('{tmp_path}/log', 'w').write('x')")
    assert names(tmp_path, sources) == set()


@pytest.mark.parametrize("how", ["edited", "removed", "replaced", "touched"])
def test_a_change_is_seen(tmp_path: Path, how: str) -> None:
    module = tmp_path / "module.py"
    module.write_text("x = 1")
    sources, _ = watch(tmp_path, "import module")
    match how:
        case "edited":
            module.write_text("x = 2")
        case "removed":
            module.unlink()
        case "replaced":
            other = tmp_path / "other"
            other.write_text("x = 2")
            os.utime(other, (1e9, 1e9))
            other.replace(module)
        case "touched":
            module.touch()
    assert changed(sources) == str(module)


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


OPTIONAL = "try: import optional\nexcept ImportError: pass"
SUBMODULE = "try: from package import sub\nexcept ImportError: pass"
RELATIVE = "import package.asks"
FOUND = "from importlib.util import find_spec\nassert find_spec('optional') is None"
BY_NAME = "import importlib\ntry: importlib.import_module('optional')\nexcept ImportError: pass"


@pytest.mark.parametrize(
    ("source", "comes"),
    [
        (OPTIONAL, "optional.py"),
        (OPTIONAL, "optional/__init__.py"),
        (OPTIONAL, f"optional{EXTENSION_SUFFIXES[0]}"),
        (BY_NAME, "optional.py"),
        (FOUND, "optional.py"),
        (SUBMODULE, "package/sub.py"),
        (SUBMODULE, "package/sub/__init__.py"),
        (RELATIVE, "package/sub.py"),
        ("import module", "module/__init__.py"),
        ("import module", f"module{EXTENSION_SUFFIXES[0]}"),
        ("import spread", "spread/__init__.py"),
        ("import spread", "spread.py"),
        ("sys.path.append(sys.argv[1] + '/later')\nimport spread", "later/spread/other.py"),
        ("sys.path.insert(0, sys.argv[1] + '/earlier')\nimport module", "earlier/module.py"),
        ("sys.path.insert(0, sys.argv[1] + '/earlier')\nimport psutil", "earlier/psutil.py"),
        ("import psutil", "psutil.py"),
    ],
)
def test_a_module_that_appears_is_seen(tmp_path: Path, source: str, comes: str) -> None:
    for path in ("module.py", "package/__init__.py", "spread/part.py"):
        put(tmp_path / path)
    (tmp_path / "package" / "asks.py").write_text("try: from . import sub\nexcept ImportError: pass")
    sources, _ = watch(tmp_path, source)
    assert changed(sources) is None
    put(tmp_path / "other" / "of_no_concern.py")
    put(tmp_path / "of_no_concern.py")
    assert changed(sources) is None
    put(tmp_path / comes)
    seen = changed(sources)
    assert seen is not None
    assert (tmp_path / comes).is_relative_to(seen)


def test_a_module_that_comes_back_is_seen_and_may_go_again(tmp_path: Path) -> None:
    module, aside = tmp_path / "optional.py", tmp_path / "optional.py.aside"
    module.touch()
    there, _ = watch(tmp_path, OPTIONAL)
    module.rename(aside)
    assert changed(there) == str(module)
    gone, _ = watch(tmp_path, OPTIONAL)
    assert changed(gone) is None
    aside.rename(module)
    assert changed(gone) == str(tmp_path)
    assert changed(there) is None


@pytest.mark.parametrize("comes", ["later/module.py", "module.pyc", "package.py", "json.py"])
def test_a_module_that_would_not_be_taken_does_not_count(tmp_path: Path, comes: str) -> None:
    put(tmp_path / "module.py")
    put(tmp_path / "package" / "__init__.py")
    sources, _ = watch(tmp_path, "sys.path.append(sys.argv[1] + '/later')\nimport json, module, package")
    put(tmp_path / comes)
    assert changed(sources) is None


def test_a_parse_has_not_looked_at_what_could_have_been_imported(tmp_path: Path) -> None:
    sources, _ = watch(tmp_path, f"sys.path.append('{tmp_path}/lib.zip')\n{OPTIONAL}\n{SUBMODULE}")
    assert looked_at(sources) == [path for path in looked_at(sources) if os.path.isdir(path)]
    put(tmp_path / "lib.zip" / "optional.py")
    assert changed(sources) == str(tmp_path / "lib.zip")


def test_what_is_looked_for_is_bounded(tmp_path: Path) -> None:
    source = "for i in range(6000):\n  try: __import__(f'missing_{i}')\n  except ImportError: pass"
    sources, _ = watch(tmp_path, source)
    assert ["missing_4000.py" in json.dumps(sources), "missing_5500.py" in json.dumps(sources)] == [True, False]
    assert changed(sources) is None


def test_a_watch_leaves_imports_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import sys\nsys.meta_path = [*sys.meta_path, *sys.meta_path[-1:]]")
    code = WATCHED.replace("watch = Watch()", "before = sys.meta_path[:]\nwatch = Watch()")
    code += "assert sys.meta_path == [*before, before[-1]]"
    (tmp_path / "not_while_parsing").touch()
    subprocess.run([sys.executable, "-c", code, str(tmp_path), "import module"], check=True, timeout=60)


def test_a_folder_below_the_prefix_of_the_interpreter_is_watched(tmp_path: Path) -> None:
    (tmp_path / "module.py").touch()
    prefix = (
        "import sysconfig\npaths = sysconfig.get_paths()\nsysconfig.get_paths = lambda: {**paths, 'data': sys.argv[1]}"
    )
    sources, _ = watch(tmp_path, f"{prefix}\nimport module")
    assert names(tmp_path, sources) == {"module.py"}


def test_what_changes_while_it_is_parsed_is_out_of_date_at_once(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("import pathlib; pathlib.Path(__file__).write_text('x = 2')")
    sources, _ = watch(tmp_path, "import module")
    assert changed(sources) == str(tmp_path / "module.py")


def test_installed_packages_are_watched_by_their_folder(tmp_path: Path) -> None:
    sources, _ = watch(tmp_path, "import psutil")
    paths = [path for path, _ in sources]
    assert not any(path.endswith("psutil/__init__.py") for path in paths)
    assert any(path.rstrip("/").endswith("-packages") for path in paths)


def test_a_connection_makes_a_parse_unrepeatable(tmp_path: Path) -> None:
    source = "s = socket.socket(); s.settimeout(1)\ntry: s.connect(('127.0.0.1', 1))\nexcept OSError: pass"
    assert "127.0.0.1" in watch(tmp_path, source)[1]


def test_no_file_has_the_signature_of_another(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert signature(str(tmp_path / "a")) == signature(str(tmp_path / "a"))
    assert signature(str(tmp_path / "b")) == []
    assert signature("\0") == []


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    module = tmp_path / "future.py"
    source = "import os\nos.utime(sys.argv[1] + '/future.py', (9e9, 9e9))\nimport future"
    module.write_text("")
    sources, _ = watch(tmp_path, source)
    assert "future.py" in names(tmp_path, sources)
    assert changed(sources) is None
    module.write_text("VALUE = 1")
    assert changed(sources) == str(module)
