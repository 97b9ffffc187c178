"""Statistics of how often each image counts, and what their intervals say."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from perpixel.evaluation import ratio
from recipes.kit.tables import Row

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # of weights (R, images): how often each image counts


def ratio_of_sums(part: Floats, whole: Floats) -> Statistic:
    """Sum of part (images, ...) over that of whole; NaN where the whole is not positive."""
    return lambda weights: ratio(weights @ part, weights @ whole)


def quotient(one: Statistic, other: Statistic) -> Statistic:
    """one / other on the same draw of images; NaN where the other is not positive."""
    return lambda weights: ratio(one(weights), other(weights))


def difference(one: Statistic, other: Statistic) -> Statistic:
    """one - other on the same draw of images."""
    return lambda weights: one(weights) - other(weights)


def verdict(row: Row, name: str, more: str, less: str, *, at: float = 0.0, neither: str = "undecided") -> str:
    """`more` or `less` where the interval of a column lies above or below `at`, else `neither`."""
    return more if row[f"{name}_low"] > at else less if row[f"{name}_high"] < at else neither
