"""Machine learning as people do it with dask.delayed: a grid of hyper-parameters, cross-validated."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Workload

FOLDS = 3
Data = tuple[NDArray[np.float64], NDArray[np.int64]]


def load() -> Data:
    """The handwritten digits that ship with scikit-learn: 1,797 pictures of 8 x 8."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    return pixels / 16.0, digits


def score(data: Data, fold: int, depth: int, leaf: int, trees: int) -> float:
    """Trains on two thirds, returns the accuracy on the third that was left out."""
    from sklearn.ensemble import RandomForestClassifier

    pixels, digits = data
    held_out = np.arange(len(digits)) % FOLDS == fold
    model = RandomForestClassifier(n_estimators=trees, max_depth=depth, min_samples_leaf=leaf, random_state=fold)
    model.fit(pixels[~held_out], digits[~held_out])
    return float(model.score(pixels[held_out], digits[held_out]))


def average(parameters: tuple[int, ...], scores: list[float]) -> tuple[tuple[int, ...], float]:
    return parameters, sum(scores) / len(scores)


def best(results: list[tuple[tuple[int, ...], float]]) -> list[tuple[tuple[int, ...], float]]:
    return sorted(results, key=lambda result: (-result[1], result[0]))


def grid() -> Any:
    import sklearn.ensemble  # noqa: F401  imported before the clock starts, as any user's program has
    from dask import delayed

    data = delayed(load)()
    results = []
    for parameters in product((4, 8, 12), (1, 4), (10, 20)):
        scores = [delayed(score)(data, fold, *parameters) for fold in range(FOLDS)]
        results.append(delayed(average)(parameters, scores))
    return delayed(best)(results)


WORKLOADS = (Workload("grid", "scikit-learn hyper-parameter grid", grid, requires=("sklearn",)),)
