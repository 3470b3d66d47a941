"""What a zygote imports because its tasks do."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace_airflow import preload
from headrace_airflow.preload import Imports, announce


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of one that may be imported."""
    name = "quiet_library_of_the_tests"
    (tmp_path / f"{name}.py").write_text("VALUE = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(preload, "QUIET", frozenset({name}))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


class TestImports:
    def test_of_what_a_task_imports(self, library: str) -> None:
        imports = Imports([])
        assert not imports.pending
        imports.wish(library)
        assert imports.pending
        imports.do_next()
        assert library in sys.modules
        assert not imports.pending

    def test_once(self, library: str) -> None:
        imports = Imports([])
        imports.wish(library)
        imports.wish(library)
        imports.do_next()
        imports.wish(library)
        assert not imports.pending

    def test_of_known_libraries_only(self, library: str) -> None:
        imports = Imports([])
        imports.wish("antigravity")
        assert not imports.pending

    def test_of_nothing_where_it_is_not_wanted(self, library: str) -> None:
        imports = Imports([], wanted=False)
        imports.wish(library)
        assert not imports.pending

    @pytest.mark.parametrize(
        "source",
        [
            'os.environ["OMP_NUM_THREADS"] = "1"',
            "ENVIRONMENT = {'OPENBLAS_CORETYPE': 'Haswell'}",
            'sys.path.insert(0, "/opt/other/site-packages")',
            "from site import addsitedir",
        ],
    )
    def test_of_nothing_where_a_source_may_have_to_come_first(self, library: str, tmp_path: Path, source: str) -> None:
        (tmp_path / "dags.py").write_text(source)
        imports = Imports([str(tmp_path / "dags.py")])
        imports.wish(library)
        assert not imports.pending

    @pytest.mark.parametrize("name", ["dags.zip", "gone.py"])
    def test_of_nothing_where_a_source_cannot_be_read(self, library: str, tmp_path: Path, name: str) -> None:
        imports = Imports([str(tmp_path / name)])
        imports.wish(library)
        assert not imports.pending

    def test_beside_sources_that_say_nothing_of_the_kind(self, library: str, tmp_path: Path) -> None:
        (tmp_path / "dags.py").write_text('os.environ["HOME"]; sys.pathological; COMP_NUM_THREADS')
        (tmp_path / "data.csv").write_text("OMP_NUM_THREADS")
        imports = Imports([str(tmp_path), str(tmp_path / "dags.py"), str(tmp_path / "data.csv")])
        imports.wish(library)
        assert imports.pending

    def test_that_fails(self, library: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        (tmp_path / f"{library}.py").write_text("raise SystemExit('not today')")
        imports = Imports([])
        imports.wish(library)
        imports.do_next()
        assert not imports.pending
        assert "not today" in capfd.readouterr().err


def test_a_task_tells_of_what_it_begins_to_import(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def tell(message: dict[str, Any], descriptors: Sequence[int]) -> None:
        told.append((message, list(descriptors), library in sys.modules))

    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    announce(tell)
    importlib.import_module(library)
    importlib.import_module("this")
    assert told == [({"t": "import", "module": library}, [], False)]
    assert importlib.import_module(library).VALUE == 1
