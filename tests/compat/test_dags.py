"""Comparing passes of Airflow's example DAGs, and the recipe that says which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from compat_suite.dags import compare
from compat_suite.dags.compare import Difference
from compat_suite.dags.recipe import RecipeError, load
from compat_suite.dags.xcoms import shown

HERE = Path(compare.__file__).parent
STOCK = {"one": {"state": "success", "task a": "success, try 1"}, "two": {"state": "failed"}}


def with_task(value: str) -> dict[str, dict[str, str]]:
    return {**STOCK, "one": {**STOCK["one"], "task a": value}}


class TestCompare:
    def test_finds_nothing_in_the_same(self) -> None:
        verdict = compare.judge("headrace", [STOCK, STOCK], dict(STOCK))
        assert (verdict.dags, verdict.tasks, verdict.identical, verdict.differences) == (2, 1, 2, [])

    def test_a_difference_that_stock_never_showed_is_a_fault(self) -> None:
        verdict = compare.judge("headrace", [STOCK, STOCK], with_task("failed, try 2"))
        shown = frozenset({"success, try 1"})
        assert verdict.faults == [Difference("one", "task a", shown, "failed, try 2")]
        assert (verdict.identical, compare.unexplained([verdict])) == (1, ["one"])
        assert str(verdict.faults[0]) == "one: task a: failed, try 2 on Headrace, success, try 1 on stock"

    def test_a_difference_is_explained_when_stock_differs_from_itself_in_the_same(self) -> None:
        verdict = compare.judge("headrace", [STOCK, with_task("skipped, try 1")], with_task("failed, try 2"))
        assert (len(verdict.differences), verdict.faults, compare.unexplained([verdict])) == (1, [], [])

    def test_a_later_pass_may_be_short_of_dags(self) -> None:
        again = {"one": with_task("skipped, try 1")["one"]}
        assert compare.judge("headrace", [STOCK, STOCK, again], with_task("skipped, try 1")).faults == []

    @pytest.mark.parametrize("ours", [{"two": STOCK["two"]}, {**STOCK, "one": {"state": "success"}}])
    def test_what_is_not_there_is_a_difference(self, ours: dict[str, dict[str, str]]) -> None:
        faults = compare.judge("headrace", [STOCK, STOCK], ours).faults
        assert ("task a", compare.ABSENT) in [(fault.fact, fault.headrace) for fault in faults]

    def test_what_is_there_besides_is_a_difference(self) -> None:
        ours = {**STOCK, "two": {"state": "failed", "xcom a return_value": "int 1"}}
        (fault,) = compare.judge("headrace", [STOCK, STOCK], ours).faults
        assert (fault.fact, fault.stock) == ("xcom a return_value", frozenset({compare.ABSENT}))


class TestShown:
    @pytest.mark.parametrize("key", ["return_value", "skipmixin_key"])
    def test_what_was_skipped_has_no_order(self, key: str) -> None:
        first, second = ({"skipped": task_ids} for task_ids in (["a", "b"], ["b", "a"]))
        assert (shown(key, first) == shown(key, second)) is (key == "skipmixin_key")

    def test_a_value_has_a_type(self) -> None:
        assert shown("return_value", 1) == "int 1"
        assert shown("return_value", "1") == "str '1'"


class TestRecipe:
    def test_the_recipe_names_every_dag_once(self) -> None:
        recipe = load(HERE / "airflow-3.3.toml")
        left_out = [dag_id for item in recipe.left_out for dag_id in item.dags]
        assert len(recipe.dags) + len(left_out) == 114
        assert all(item.reason for item in recipe.left_out)
        assert set(recipe.ci) < set(recipe.dags)

    def test_its_versions_are_complete_and_plain(self) -> None:
        lines = load(HERE / "airflow-3.3.toml").requirements.read_text().splitlines()
        assert "apache-airflow==3.3.2" in lines
        assert all(re.fullmatch(r"[a-z0-9.-]+==[a-z0-9.+]+", line) for line in lines)

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ('dags = ["a", "a"]', "named twice: a"),
            ('dags = ["a"]\nci = ["b"]', "not among its DAGs: b"),
            ('dags = ["a"]\nnonsense = 1', "nonsense"),
            ("", "dags"),
        ],
    )
    def test_a_wrong_recipe_is_refused(self, text: str, complaint: str, tmp_path: Path) -> None:
        path = tmp_path / "wrong.toml"
        path.write_text(f'summary = "s"\nrequirements = "r.txt"\n{text}\n')
        with pytest.raises(RecipeError, match=complaint):
            load(path)
