"""Recipes are read as they are written, and what cannot be meant is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from compat_suite.recipe import Excuse, RecipeError, load, matches

RECIPES = sorted((Path(__file__).resolve().parents[2] / "compat_suite" / "recipes").glob("*.toml"))

SMALL = """
summary = "A recipe"
requirements = "versions.txt"

[[suite]]
name = "one"
targets = ["a.tests"]
ci = ["a.tests.test_x"]
workers = 2
at_most = { processes = 2.0 }

[[suite.deselect]]
tests = ["a/tests/test_x.py::test_net"]
reason = "needs a network"

[[excuse]]
tests = ["a/tests/test_x.py::test_ids*"]
lanes = ["processes"]
reason = "looks at object identity"
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "small.toml"
    path.write_text(text)
    return path


def test_a_recipe_is_read(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, SMALL))
    (suite,) = recipe.suites
    assert recipe.name == "small"
    assert recipe.requirements == tmp_path / "versions.txt"
    assert suite.targets == ("a.tests",)
    assert suite.at_most == {"processes": 2.0}
    assert suite.ci == ("a.tests.test_x",)
    assert suite.deselect[0].reason == "needs a network"
    excuse = recipe.excuse("a/tests/test_x.py::test_ids[1]", "processes")
    assert excuse is not None
    assert excuse.reason == "looks at object identity"
    assert recipe.excuse("a/tests/test_x.py::test_ids[1]", "auto") is None
    assert recipe.excuse("a/tests/test_x.py::test_other", "processes") is None


def test_the_part_for_ci_is_small_and_says_nothing_about_times(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, SMALL + '\n[[suite]]\nname = "left out"\ntargets = ["b.tests"]\n')).short()
    (suite,) = recipe.suites
    assert (suite.name, suite.targets, suite.workers, suite.at_most) == ("one", ("a.tests.test_x",), 0, {})
    assert suite.deselect
    assert recipe.excuses
    assert not recipe.prove


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("targets", "target", "unexpected keyword argument 'target'"),
        ('reason = "looks at object identity"', "", "missing 1 required positional argument: 'reason'"),
        ('"looks at object identity"', '" "', "needs a reason"),
        ('["processes"]', '["auto"]', "lane auto has no excuses"),
        ('lanes = ["processes"]', 'lanes = ["processes"]\nproof = "trust me"', "proof must be"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SMALL
    with pytest.raises(RecipeError, match=message):
        load(write(tmp_path, SMALL.replace(old, new, 1)))


def test_brackets_in_a_pattern_are_ordinary() -> None:
    assert matches("t.py::f[a]", "t.py::f[a]")
    assert not matches("t.py::f[a]", "t.py::fa")
    assert matches("t.py::f[a*", "t.py::f[a-b]")
    assert not matches("t.py::f", "t.py::f[a]")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_project_are_sound(path: Path) -> None:
    recipe = load(path)
    lines = [line for line in recipe.requirements.read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    assert all(line.count("==") == 1 for line in lines), "every version is pinned"
    assert recipe.suites
    assert all(item.reason for suite in recipe.suites for item in suite.deselect)


def test_an_excuse_names_its_lanes() -> None:
    excuse = Excuse(("t.py::f",), ("processes",), "because")
    assert excuse.covers("t.py::f", "processes")
    assert not excuse.covers("t.py::f", "auto")
