"""Recipes: which suites to run, on which versions, and what is known about them. Plain data, read from TOML.

Test ids are pytest's, relative to site-packages (``dask/tests/test_base.py::test_compute``); a pattern is an id, or the
beginning of one followed by ``*``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")

LANES = ("auto", "processes")


class RecipeError(Exception):
    """A recipe says something that cannot be meant."""


@dataclasses.dataclass(frozen=True)
class Deselection:
    """Tests that are not run at all: they say nothing about a scheduler, or need what no machine of ours has.

    Args:
        tests: beginnings of ids, as ``pytest --deselect`` takes them.
    """

    tests: tuple[str, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Excuse:
    """Tests that may pass on the baseline and fail on Headrace.

    Args:
        tests: patterns of ids.
        lanes: where they may fail; never ``auto``.
        reason: why no scheduler that uses processes can pass them.
        proof: ``stock``: they must fail under dask's own ``processes`` too, which is run to see;
            ``argument``: dask's ``processes`` happens to pass, and ``reason`` says why that proves nothing.
    """

    tests: tuple[str, ...]
    lanes: tuple[str, ...]
    reason: str
    proof: str = "stock"

    def __post_init__(self) -> None:
        if "auto" in self.lanes:
            raise RecipeError(f"lane auto has no excuses: {self.tests}")
        if self.proof not in ("stock", "argument"):
            raise RecipeError(f"proof must be 'stock' or 'argument', not {self.proof!r}")
        if not self.reason.strip():
            raise RecipeError(f"an excuse needs a reason: {self.tests}")

    def covers(self, test: str, lane: str) -> bool:
        return lane in self.lanes and any(matches(pattern, test) for pattern in self.tests)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Tests that are run together in one pytest session.

    Args:
        targets: modules or packages, as ``pytest --pyargs`` takes them.
        ci: the targets of the part for CI; none: the suite is left out of it.
        workers: processes of pytest-xdist; 0 for none, which is what a comparison of times needs.
        timeout_s: for the whole session; a test has ``test_timeout_s``.
        replace_sync: whether the names of the synchronous scheduler mean the one under test (see ``plugin``).
        share: the least part of the baseline's graphs that must run on Headrace, or the run is vacuous. Less than all,
            because some tests call ``dask.threaded.get`` itself, and because computing inside a task happens out of
            sight when the task runs in another process.
        at_most: lane → how many times the baseline's wall time it may take.
    """

    name: str
    targets: tuple[str, ...]
    ci: tuple[str, ...] = ()
    markers: str = ""
    workers: int = 0
    timeout_s: float = 1800.0
    test_timeout_s: float = 120.0
    replace_sync: bool = False
    share: float = 0.9
    at_most: Mapping[str, float] = dataclasses.field(default_factory=dict)
    deselect: tuple[Deselection, ...] = ()

    def short(self) -> Suite:
        """The part for CI. It is small: starting pytest-xdist costs more than it saves, and times say little."""
        return dataclasses.replace(self, targets=self.ci, workers=0, at_most={})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One set of versions and the suites that are run with it.

    Args:
        requirements: file of ``name==version`` lines, beside the recipe.
        env: added to the environment of every run.
        root: directory with the suites' packages, when they are not in the environment's site-packages.
        prove: whether dask's own ``processes`` is asked if excuses are true.
    """

    name: str
    summary: str
    requirements: Path
    suites: tuple[Suite, ...]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    excuses: tuple[Excuse, ...] = ()
    root: str = ""
    prove: bool = True

    def short(self) -> Recipe:
        """The part for CI, which takes the whole run's word for the excuses."""
        return dataclasses.replace(self, suites=tuple(suite.short() for suite in self.suites if suite.ci), prove=False)

    def excuse(self, test: str, lane: str) -> Excuse | None:
        return next((excuse for excuse in self.excuses if excuse.covers(test, lane)), None)


def matches(pattern: str, test: str) -> bool:
    """Whether a test's id is the pattern, or begins with it when it ends in ``*``; brackets are ordinary here."""
    return test.startswith(pattern[:-1]) if pattern.endswith("*") else test == pattern


def load(path: Path) -> Recipe:
    """Reads a recipe.

    Raises:
        RecipeError: a key is unknown or missing, or a value makes no sense.
    """
    data = tomllib.loads(path.read_text())
    suites = tuple(_suite(path, suite) for suite in data.pop("suite", []))
    excuses = tuple(_build(path, Excuse, excuse, ("tests", "lanes")) for excuse in data.pop("excuse", []))
    data |= {"name": path.stem, "suites": suites, "excuses": excuses}
    data["requirements"] = path.parent / data.get("requirements", f"{path.stem}.txt")
    return _build(path, Recipe, data, ())


def _suite(path: Path, data: dict[str, Any]) -> Suite:
    data["deselect"] = [_build(path, Deselection, item, ("tests",)) for item in data.get("deselect", [])]
    return _build(path, Suite, data, ("targets", "ci", "deselect"))


def _build(path: Path, kind: type[T], data: dict[str, Any], sequences: Sequence[str]) -> T:
    try:
        return kind(**{name: tuple(value) if name in sequences else value for name, value in data.items()})
    except TypeError as error:
        raise RecipeError(f"{path.name}: {error}") from None
