"""Weights that meet a target and keep to bounds: a projection, solved in its dual."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import scipy.sparse.linalg

from patterning_fast.arguments import Positive, Share, checked
from patterning_fast.domains import Within
from patterning_fast.patterning.response import Response, dot

TOLERANCE = 1e-8
"""Of a target met, relative to its size."""

ITERATIONS = 60
"""Newton steps after which a target is taken for one that cannot be met."""

SMALLEST_SHARE = 0.01
"""Targets of which less than this can be met are not worth proposing."""


@dataclass(frozen=True)
@checked
class Constraints:
    """What weights ρ must keep to, beside mean 1 and what `negative_weights` says. None leaves it free."""

    cap: Annotated[float, Within(above=1)] | None = None
    """Largest weight, > 1."""
    reweighted: Share | None = None
    """Largest share of the data whose weight may differ from 1: those that the free plan changes most."""
    kl: Positive | None = None
    """Largest divergence Σ ρ·log ρ / n [nats] from the base mixture. Weights are then exp(...), nearest in KL."""


@dataclass(frozen=True)
class Distance:
    """How far weights are from 1, within bounds; as the dual sees it, at `s = Rᵀ·multipliers` of each datum."""

    lower: float
    upper: float
    relative_entropy: bool
    """Σ ρ·log ρ in place of ½Σ (ρ − 1)²."""

    def weights(self, s: np.ndarray) -> np.ndarray:
        """ρ that minimises distance − s·ρ."""
        if self.relative_entropy:
            return np.exp(np.minimum(s, min(math.log(self.upper), 300.0)))
        return np.clip(1.0 + s, self.lower, self.upper)

    def slope(self, weights: np.ndarray) -> np.ndarray:
        """dρ/ds."""
        free = (weights > self.lower) & (weights < self.upper)
        return weights * free if self.relative_entropy else free.astype(np.float64)

    def of(self, weights: np.ndarray) -> np.ndarray:
        """The distance of each datum."""
        if self.relative_entropy:
            return relative_entropy(weights) - weights + 1.0
        return 0.5 * (weights - 1.0) ** 2

    def most(self, values: np.ndarray, counts: np.ndarray) -> float:
        """The largest Σ values·ρ of weights within the bounds and of mean 1."""
        total = float(counts.sum())
        if math.isinf(self.upper):
            return math.inf if self.lower < 0 else total * float(values.max())
        if self.lower < 0:  # all at the cap but one, which pays for it
            return self.upper * float(counts @ values) - (self.upper - 1.0) * total * float(values.min())
        order = np.argsort(values)[::-1]
        filled = np.minimum(np.cumsum(self.upper * counts[order]), total)
        return float(np.diff(filled, prepend=0.0) @ values[order])


def relative_entropy(weights: np.ndarray) -> np.ndarray:
    """ρ·log ρ of each datum, 0 for weights of 0."""
    return weights * np.log(np.where(weights > 0, weights, 1.0))


@dataclass(frozen=True)
class Attempt:
    """Weights that meet a target, or how much of it can be met at most."""

    weights: np.ndarray | None
    share: float


@dataclass(frozen=True)
class Point:
    """The dual at one value of its multipliers."""

    multipliers: np.ndarray
    weights: np.ndarray
    value: float
    residual: np.ndarray
    """What is missing of the target, and of mean 1."""
    direction: np.ndarray
    """Rᵀ·multipliers, without that of the mean."""


@dataclass(frozen=True)
class Projection:
    """The weights nearest to 1 with Σ v·ρ = Σ v + amounts for rows v = Rᵀ·rows, mean 1, within bounds.

    Distances of data count in inverse to their weight in the response, which their changes are in proportion to.

    In the dual each datum's weight is a function of one number, so that there are as many unknowns as rows, however
    many data. Newton's steps are solved by conjugate gradients: rows are orthonormal, so that few products suffice.
    """

    response: Response
    rows: np.ndarray
    """`[rows of the response, rows]`: combinations of them."""
    distance: Distance

    def split(self, multipliers: np.ndarray) -> tuple[np.ndarray, float]:
        """The combination of rows that multipliers make, and what they add to all data."""
        return dot(self.rows, multipliers[:-1]), float(multipliers[-1]) / math.sqrt(self.response.total)

    def at(self, multipliers: np.ndarray, goal: np.ndarray) -> Point:
        combination, offset = self.split(multipliers)
        direction, weights = np.empty(self.response.data), np.empty(self.response.data)

        def weigh(where: slice, along: np.ndarray) -> np.ndarray:
            direction[where] = along / self.response.weight[where]
            weights[where] = self.distance.weights(along + offset * self.response.weight[where])
            return weights[where]

        reached = dot(self.rows.T, self.response.both(combination, weigh))
        reached = np.append(reached, dot(self.response.counts, weights) / math.sqrt(self.response.total))
        conjugate = (direction + offset) * weights - self.distance.of(weights) / self.response.weight
        value = float(dot(self.response.counts, conjugate) - goal @ multipliers)
        return Point(multipliers, weights, value, goal - reached, direction)

    def step(self, point: Point, tolerance: float) -> np.ndarray:
        """Newton's step `[rows + 1]`."""
        slope = self.distance.slope(point.weights)

        def product(multipliers: np.ndarray) -> np.ndarray:
            combination, offset = self.split(multipliers)
            moved = np.empty(self.response.data)

            def move(where: slice, along: np.ndarray) -> np.ndarray:
                moved[where] = slope[where] * (along + offset * self.response.weight[where])
                return moved[where]

            along = dot(self.rows.T, self.response.both(combination, move))
            mean = dot(self.response.counts, moved) / math.sqrt(self.response.total)
            return np.append(along, mean) + 1e-10 * multipliers

        size = len(point.multipliers)
        curvature = scipy.sparse.linalg.LinearOperator((size, size), matvec=product, dtype=np.float64)
        found, _ = scipy.sparse.linalg.cg(curvature, point.residual, rtol=tolerance, maxiter=2 * size + 20)
        return found

    def solve(self, amounts: np.ndarray) -> Attempt:
        """The weights that add `amounts` along the rows; or None, and the share of `amounts` that can be added."""
        unchanged = self.rows.T @ self.response.of(np.ones(self.response.data))
        goal = np.append(unchanged + amounts, math.sqrt(self.response.total))
        point = self.at(np.zeros(len(goal)), goal)
        size, share = float(np.linalg.norm(amounts)), math.inf
        for _ in range(ITERATIONS):
            missing = float(np.linalg.norm(point.residual))
            if missing <= TOLERANCE * size:
                return Attempt(point.weights, 1.0)
            wanted = float(amounts @ point.multipliers[:-1])
            if wanted > 0:  # no weights do more along this direction: a bound on what can be asked
                most = self.distance.most(point.direction, self.response.counts)
                share = min(share, (most - float(unchanged @ point.multipliers[:-1])) / wanted)
                if share < 1.0 - TOLERANCE:
                    return Attempt(None, share)
            step = self.step(point, min(0.1, missing / size))
            descent, length = float(point.residual @ step), 1.0
            slack = 1e-13 * (abs(point.value) + self.response.total)
            tried = self.at(point.multipliers + step, goal)
            while tried.value > point.value - 1e-4 * length * descent + slack and length > 1e-6:
                length /= 2
                tried = self.at(point.multipliers + length * step, goal)
            point = tried
        return Attempt(None, min(share, 1.0))


def constrained(
    response: Response,
    rows: np.ndarray,
    amounts: np.ndarray,
    change: np.ndarray,
    lower: float,
    constraints: Constraints,
) -> Attempt:
    """Weights nearest to 1 that add `amounts` along `rows` and keep to the constraints.

    `change` is that of the free plan, whose largest values say which data a limit on their share leaves. Where there
    are no such weights, the share of the attempt is one that has been met, or 0.
    """
    chosen = np.arange(response.data)
    if constraints.reweighted is not None:
        chosen = largest(change, response.counts, constraints.reweighted)
    upper = math.inf if constraints.cap is None else constraints.cap
    distance = Distance(lower, upper, relative_entropy=constraints.kl is not None)
    part = response if constraints.reweighted is None else response.take(chosen)
    projection = Projection(part, rows, distance)

    def attempt(share: float) -> Attempt:
        found = projection.solve(share * amounts)
        if found.weights is None:
            return Attempt(None, share * found.share)
        weights = np.ones(response.data)
        weights[chosen] = found.weights
        if constraints.kl is not None:
            divergence = float(response.counts @ relative_entropy(weights)) / response.total
            if divergence > constraints.kl:  # which grows as the square of the share
                return Attempt(None, share * math.sqrt(constraints.kl / divergence))
        return Attempt(weights, share)

    found = attempt(1.0)
    if found.weights is not None:
        return found
    share = found.share
    while (share := 0.98 * share) > SMALLEST_SHARE:
        found = attempt(share)
        if found.weights is not None:
            return Attempt(None, share)
        share = min(0.8 * share, found.share)
    return Attempt(None, 0.0)


def largest(change: np.ndarray, counts: np.ndarray, share: float) -> np.ndarray:
    """Indices of the data with the largest change, at most a share of all, in their order."""
    order = np.argsort(-np.abs(change), kind="stable")
    number = int(np.searchsorted(np.cumsum(counts[order]), share * counts.sum() * (1 + 1e-12), side="right"))
    if number == 0:
        raise ValueError(f"a share of {share:g} of the data is not a single unit of it: raise reweighted")
    return np.sort(order[:number])
