"""Where over the data the noise of χ lies, measured from its groups, and the inner products in which it is alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from patterning_fast.patterning.estimates import ROUNDING, Estimates
from patterning_fast.patterning.noise import group_contrasts
from patterning_fast.patterning.response import Response, blocks

GROUPS = 17
"""Most groups that noise is measured from; more are merged."""

ROWS = 256
"""Most rows of noise whose directions are looked for; components are mixed at random where there are more."""

DIRECTIONS = 64
"""Most directions of the data in which noise is told from the rest."""

PRIOR = 4.0
"""Degrees of freedom that the mean variance of noise counts for beside a datum's own."""

NEGLIGIBLE = 1 / 3
"""Noise under this share of χ is not avoided further: weights are then of least norm, and smaller."""


@dataclass(frozen=True)
class Noise:
    """χ and independent draws of its noise, by inner products over data in a metric in which noise is alike.

    The metric is the inverse of noise's covariance over the data: each datum by the inverse of its variance, less what
    lies in directions that noise shares (generalised least squares). A draw of noise is taken in the metric of the
    others, which has not seen it, so that it is as large as that of χ.
    """

    response: Response
    """χ, with the weight of each datum and the directions that are avoided."""
    gram: np.ndarray
    """Of the response `[components, components]`."""
    beside: np.ndarray
    """Of the response in the metric of the other draws `[draws, components, components]`."""
    cross: np.ndarray
    """Of the response, in rows, and a draw `[draws, components, components]`."""
    draws: np.ndarray
    """`[draws, components, components]`"""
    along: np.ndarray
    """Of the response and the directions avoided `[components, directions]`."""
    shrunk: np.ndarray
    """How much of them is avoided, in [0, 1] `[directions]`."""
    seen: np.ndarray
    """Of the response, in rows, and a draw, in the metric that is made from that draw too
    `[draws, components, components]`.
    """
    size: np.ndarray
    """Variance of noise of a datum `[components]`."""

    def rows(self, combinations: np.ndarray) -> np.ndarray:
        """Rows of the response that make what combinations of components `[components, n]` do in the metric."""
        return np.vstack([combinations, -self.shrunk[:, None] * (self.along.T @ combinations) / self.response.scale])

    def unseen(self, combination: np.ndarray) -> float:
        """Variance of noise's response to a combination of components `[components]` over that of draws that the metric
        has seen, at least 1.
        """
        unseen, seen = (float(np.sum((combination @ each) ** 2 / self.size)) for each in (self.cross, self.seen))
        return max(1.0, unseen / seen) if seen > 0 else 1.0


@dataclass(frozen=True)
class Draws:
    """Draws of noise, contrasts of the groups, read in blocks of the data, each as large as the noise of χ."""

    estimates: Estimates

    @cached_property
    def contrasts(self) -> np.ndarray:
        """`[components, draws, groups]`"""
        return group_contrasts(self.estimates.group, GROUPS)

    @property
    def number(self) -> int:
        return int(self.contrasts.shape[1])

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Draws `[draws, components, block]`, times the root of counts; raises ValueError where they are not finite."""
        components, groups, data = self.estimates.group.shape
        used = (self.contrasts != 0).sum(1) > 0
        for where in blocks(components * groups, 0, data):
            values = self.estimates.group[:, :, where].values
            values = np.where(used[:, :, None], values, 0)
            broken = values.size - int(np.isfinite(values).sum())
            if broken:
                raise ValueError(f"{broken} values of chi_group are not finite; drop their tokens first")
            drawn = self.contrasts.astype(values.dtype) @ values
            yield where, drawn.swapaxes(0, 1) * np.sqrt(self.estimates.counts[where], dtype=values.dtype)

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Means over data `[draws, components]`, and variances, the mean over draws `[components]`."""
        counts = self.estimates.counts
        total, square = (np.zeros((self.number, len(self.estimates.chi))) for _ in range(2))
        for where, drawn in self.blocks():
            total += drawn @ np.sqrt(counts[where])
            square += np.einsum("kcz,kcz->kc", drawn, drawn, dtype=np.float64)
        mean = total / counts.sum()
        return mean, np.maximum(square - mean * total, 0.0).mean(0) / len(counts)


def measured(response: Response, estimates: Estimates, plain: bool) -> Noise:
    """The noise of a response; with `plain` in the metric in which all data count alike."""
    draws, counts = Draws(estimates), estimates.counts
    mean, size = draws.moments
    power = np.diag(response.gram()) / response.scale**2 / len(counts)
    size = np.maximum(size, ROUNDING**2 * power)
    size[size == 0] = 1.0  # a component that answers to nothing
    negligible = NEGLIGIBLE**2 * float(np.mean(power / size))
    found = products(draws, response, mean, size, None if plain else negligible)
    return avoiding(draws, response_in(response, found.weight), found, size, negligible, plain)


def response_in(response: Response, weight: np.ndarray) -> Response:
    """The response with each datum weighted."""
    total = float(response.counts @ weight)
    uncentred = replace(response, mean=np.zeros(len(response.chi)), scale=1.0 / total)
    return replace(response, mean=uncentred.of(weight), weight=weight)


@dataclass(frozen=True)
class Products:
    """Inner products, each datum weighted, of χ, draws of noise, and mixtures of their rows."""

    weight: np.ndarray
    """`[data]`, of mean 1."""
    shift: np.ndarray
    """Weighted means of draws `[draws, components]`."""
    cross: np.ndarray
    """Of χ and a draw `[draws, components, components]`."""
    draws: np.ndarray
    """`[draws, components, components]`"""
    mixing: np.ndarray
    """Makes the mixtures `[rows, components]` of a draw."""
    chi_mixed: np.ndarray
    """Of χ and mixtures `[components, draws, rows]`."""
    draw_mixed: np.ndarray
    """`[draws, components, draws, rows]`"""
    mixed: np.ndarray
    """`[draws, rows, draws, rows]`"""
    unseen: float
    """Variance of noise weighted by what other draws say of it, over that of noise weighted by all draws."""


def products(
    draws: Draws, response: Response, mean: np.ndarray, size: np.ndarray, negligible: float | None
) -> Products:
    """One pass over χ and its groups; weights are 1 without `negligible`, which is in units of the noise."""
    chi, counts = response.chi, response.counts
    number, components = mean.shape
    each = min(components, max(1, ROWS // number))
    mixing = np.eye(components)
    if each < components:
        mixing = np.linalg.qr(np.random.default_rng(0).standard_normal((components, each)))[0].T
    mixing = mixing / np.sqrt(size)
    freedom, weight = components * number, np.ones(len(counts))
    mixed = np.zeros((number * each, number * each))
    cross, within = (np.zeros((number, components, components)) for _ in range(2))
    beside = np.zeros(((number + 1) * components, number * each))
    totals, seen, unseen = np.zeros((number + 1, components)), 0.0, 0.0
    for where, drawn in draws.blocks():
        root = np.sqrt(counts[where])
        drawn = drawn - (mean[:, :, None] * root).astype(drawn.dtype)
        if negligible is not None:
            own = np.einsum("kcz,c->kz", drawn**2, 1 / size / components)
            weight[where] = 1.0 / (shrunk(own.mean(0), freedom) + negligible)
            seen += float(np.sum(own * weight[where]))
            for one in range(number if number > 1 else 0):
                others = shrunk(np.delete(own, one, 0).mean(0), freedom - components)
                unseen += float(np.sum(own[one] / (others + negligible)))
        drawn *= np.sqrt(weight[where], dtype=drawn.dtype)
        root = root * np.sqrt(weight[where])
        rows = np.concatenate([((chi[:, where] - response.mean[:, None]) * root).astype(drawn.dtype)[None], drawn])
        totals += rows @ root
        mixtures = (mixing.astype(drawn.dtype) @ drawn).reshape(number * each, -1)
        mixed += mixtures @ mixtures.T
        beside += rows.reshape(-1, mixtures.shape[1]) @ mixtures.T
        cross += rows[0] @ drawn.swapaxes(1, 2)
        within += drawn @ drawn.swapaxes(1, 2)
    total, level = float(counts @ weight), float(weight.mean())
    mixed_totals = (totals[1:] @ mixing.T).ravel()
    mixed -= np.outer(mixed_totals, mixed_totals) / total
    beside -= np.outer(totals.ravel(), mixed_totals) / total
    cross -= totals[0][:, None] * totals[1:, None, :] / total
    within -= totals[1:, :, None] * totals[1:, None, :] / total
    beside = beside.reshape(number + 1, components, number, each) / level
    return Products(
        weight / level, mean + totals[1:] / total, cross / level, within / level, mixing, beside[0], beside[1:],
        mixed.reshape(number, each, number, each) / level, max(1.0, unseen / seen) if seen else 1.0,
    )  # fmt: skip


def shrunk(variance: np.ndarray, freedom: int) -> np.ndarray:
    """Variances of data, known to so many degrees of freedom, towards their mean, which is 1."""
    return (freedom * variance + PRIOR) / (freedom + PRIOR)


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions of the data that mixtures of draws make."""

    combinations: np.ndarray
    """`[draws · rows, directions]`"""

    @classmethod
    def of(cls, gram: np.ndarray, most: int) -> Directions:
        """Those of rows with these inner products, the strongest first."""
        squares, axes = np.linalg.eigh(gram)
        squares, axes = squares[::-1][:most], axes[:, ::-1][:, :most]
        there = squares > 1e-10 * max(squares[0], 1e-300)
        return cls(axes[:, there] / np.sqrt(squares[there]))


def avoiding(
    draws: Draws, response: Response, found: Products, size: np.ndarray, negligible: float, plain: bool
) -> Noise:
    """Noise in the metric that avoids directions in which it is large.

    How large it is along a direction is told by draws that the direction was not made from: the variance of each along
    the directions of all others (Lam 2016; Bartz 2016), as those of noise that it was made from are too large.
    """
    number, each = found.mixed.shape[:2]
    data, components = len(found.weight), len(size)
    scale = response.scale**2
    level = max(float(np.einsum("krkr->", found.mixed)) / (number * each * data), 1e-300)
    flat = found.mixed.reshape(number * each, number * each)
    owner = np.repeat(np.arange(number), each)
    chi_mixed = found.chi_mixed.reshape(components, -1)
    draw_mixed = found.draw_mixed.reshape(number, components, -1)
    others = [Directions(np.zeros((number * each, 0)))] * number
    variance, rest = np.zeros(0), 1.0
    if not plain and number > 1:
        most = min(DIRECTIONS, each * (number - 1), data - 1)
        seen = np.zeros((number, most))
        for one in range(number):
            kept = np.flatnonzero(owner != one)
            own = Directions.of(flat[np.ix_(kept, kept)], most).combinations
            combinations = np.zeros((number * each, own.shape[1]))
            combinations[kept] = own
            others[one] = Directions(combinations)
            seen[one, : own.shape[1]] = np.mean((flat[owner == one] @ combinations) ** 2, 0) / level
        variance = seen.mean(0)
        rest = max(data - float(variance.sum()), 0.0) / max(data - most, 1)
        large = int(np.argmin(np.append(variance >= 2 * (rest + negligible), False)))
        variance = variance[:large]
    avoided = Directions.of(flat, len(variance)).combinations if len(variance) else np.zeros((number * each, 0))
    variance = variance[: avoided.shape[1]]
    share = 1.0 - (rest + negligible) / np.maximum(variance, rest + negligible)
    gram = response.gram()
    beside, cross, within = np.empty((3, number, components, components))
    for one, other in enumerate(others):
        ours = other.combinations[:, : len(share)]
        factors = share[: ours.shape[1]]
        chi_along, draw_along = chi_mixed @ ours, draw_mixed[one] @ ours
        beside[one] = gram - scale * (chi_along * factors) @ chi_along.T
        cross[one] = scale * (found.cross[one] - (chi_along * factors) @ draw_along.T)
        within[one] = scale * (found.draws[one] - (draw_along * factors) @ draw_along.T)
    along = chi_mixed @ avoided
    mean = np.append(response.mean, np.zeros(len(share)))
    response = replace(response, avoided=directions_over_data(draws, found, avoided), mean=mean)
    seen = scale * (found.cross - (along * share) @ np.swapaxes(draw_mixed @ avoided, 1, 2))
    gram -= scale * (along * share) @ along.T
    cross, within = cross * np.sqrt(found.unseen), within * found.unseen
    return Noise(response, gram, beside, cross, within, response.scale * along, share, seen, scale * level * size)


def directions_over_data(draws: Draws, found: Products, combinations: np.ndarray) -> np.ndarray:
    """The directions `[directions, data]`, of weighted mean 0."""
    avoided = np.zeros((combinations.shape[1], len(found.weight)), np.float32)
    if not len(avoided):
        return avoided
    number, each = found.mixed.shape[:2]
    of_rows = np.einsum("krd,rc->kcd", combinations.reshape(number, each, -1), found.mixing).reshape(-1, len(avoided))
    for where, drawn in draws.blocks():
        drawn = drawn.reshape(len(of_rows), -1) / np.sqrt(draws.estimates.counts[where]) - found.shift.reshape(-1, 1)
        avoided[:, where] = of_rows.T @ drawn
    return avoided
