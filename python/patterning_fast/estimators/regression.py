"""One noisy estimate over data against another, freed of the noise of both."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

LEAST_GROUPS = 4
"""Fewer independent groups of either tell no error of the slope."""


class Regression(NamedTuple):
    """Of one estimate on another over data, with standard errors."""

    slope: float
    slope_error: float
    correlation: float
    correlation_error: float


def regression(first: np.ndarray, second: np.ndarray) -> Regression:
    """Of the first on the second, from values by independent group `[groups, data]`; means over data do not count.

    Products of different groups hold signal alone, however noisy each is: so the slope is not biased by noise of the
    second, and the correlation is that of what both would be without any. By its error it may lie outside [−1, 1].
    Errors are those of a jackknife over the groups of both. NaN for fewer than 4 groups, and where all is noise.
    """
    if min(len(first), len(second)) < LEAST_GROUPS:
        return Regression(math.nan, math.nan, math.nan, math.nan)
    both = np.concatenate((first, second)).astype(np.float64)
    both -= both.mean(1, keepdims=True)
    products, of_second = both @ both.T, np.arange(len(both)) >= len(first)
    slope, correlation = slope_and_correlation(products, of_second)
    without = np.array([slope_and_correlation(products, of_second, left_out) for left_out in range(len(both))])
    variance = sum((len(each) - 1) * each.var(0) for each in (without[~of_second], without[of_second]))
    slope_error, correlation_error = np.sqrt(variance).tolist()
    return Regression(slope, slope_error, correlation, correlation_error)


def slope_and_correlation(
    products: np.ndarray, of_second: np.ndarray, left_out: int | None = None
) -> tuple[float, float]:
    """From products of groups over data `[groups, groups]`, without one of them."""
    kept = np.arange(len(products)) != left_out
    firsts, seconds = kept & ~of_second, kept & of_second
    shared = float(products[np.ix_(firsts, seconds)].mean())
    of_first, of_second_own = (signal(products[np.ix_(own, own)]) for own in (firsts, seconds))
    return shared / of_second_own, shared / math.sqrt(of_first * of_second_own)


def signal(products: np.ndarray) -> float:
    """Mean product of two different groups, which holds no noise; NaN where it is not positive."""
    number = len(products)
    mean = float((products.sum() - products.trace()) / (number * (number - 1)))
    return mean if mean > 0 else math.nan
