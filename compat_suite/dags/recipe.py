"""What a recipe of DAGs may say, and reading it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class RecipeError(ValueError):
    """The recipe is not as it must be; the message says in which respect."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """DAGs that are not run, and why."""

    dags: Sequence[str]
    reason: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """The DAGs of one release of Airflow.

    Args:
        summary: what it is, in one line.
        requirements: a file of ``name==version`` lines beside the recipe.
        dags: those that are run; all of them must be there.
        limit_s: when a run is cut off.
        ci: the few that CI runs.
        logical_dates: of DAGs that need one, as ISO dates.
        left_out: the others.
    """

    summary: str
    requirements: Path
    dags: Sequence[str]
    limit_s: float = 120.0
    ci: Sequence[str] = ()
    logical_dates: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[LeftOut] = ()


def load(path: Path) -> Recipe:
    """Raises RecipeError."""
    data: dict[str, Any] = tomllib.loads(path.read_text())
    try:
        data["left_out"] = [LeftOut(**item) for item in data.get("left_out", [])]
        recipe = Recipe(**{**data, "requirements": path.parent / data["requirements"]})
    except (KeyError, TypeError) as error:
        raise RecipeError(f"{path.name}: {error}") from None
    ids = [*recipe.dags, *(dag_id for item in recipe.left_out for dag_id in item.dags)]
    if twice := {dag_id for dag_id in ids if ids.count(dag_id) > 1}:
        raise RecipeError(f"{path.name}: named twice: {', '.join(sorted(twice))}")
    if unknown := {*recipe.ci, *recipe.logical_dates} - set(recipe.dags):
        raise RecipeError(f"{path.name}: not among its DAGs: {', '.join(sorted(unknown))}")
    return recipe
