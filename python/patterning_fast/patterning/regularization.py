"""What of χ is signal: its singular values in units of their noise, and how far each is inverted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from patterning_fast.engine.workers import one_thread_each
from patterning_fast.patterning.estimates import ROUNDING
from patterning_fast.patterning.metric import Noise
from patterning_fast.patterning.response import Response
from patterning_fast.patterning.spectrum import noise_floor

Regularization = Literal["wiener", "truncated", "none"]

CUTOFF = 1e-7
"""Singular values under this share of the largest are zero: the Gram matrix squares them, in 16 digits."""

OUTSIDE = 1e-6
"""Share of a direction's square that rounding may leave outside the rows of χ that it was made from."""

ADDED = 0.5
"""Times a draw of noise that is added to χ, to tell what is realised of directions by χ less the draw over this."""


@dataclass(frozen=True)
class Spectrum:
    """R = root·left·singular·rightᵀ: the singular values of the response, its components whitened by their noise.

    right are orthonormal in the metric in which noise is alike over data: see `Noise`.
    """

    root: np.ndarray
    """Symmetric root of the covariance of noise between components `[components, components]`, nats."""
    left: np.ndarray
    """`[components, directions]`, orthonormal."""
    singular: np.ndarray
    """`[directions]`, the largest first; those of noise alone are about 1."""
    signal: np.ndarray
    """Share of each direction's response that is signal, and is realised `[directions]`."""
    combinations: np.ndarray
    """Rows of the response that make right singular vectors `[rows, directions]`."""
    crowding: np.ndarray
    """Variance of noise's response to right singular vectors, over all components, whitened `[directions]`."""
    floor: float
    """What the first singular value of noise alone stays below in 19 of 20 runs; NaN for fewer than three groups."""
    noise_directions: float
    """Independent directions of the data that noise lies in."""
    regularization: Regularization

    @cached_property
    def inverse(self) -> np.ndarray:
        """Of `root`."""
        return np.linalg.inv(self.root)

    @cached_property
    def exists(self) -> np.ndarray:
        """Which directions are more than rounding `[directions]`."""
        return self.singular > CUTOFF * self.singular[0] if len(self.singular) else np.zeros(0, dtype=bool)

    @cached_property
    def multiples(self) -> np.ndarray:
        """What the pseudo-inverse is multiplied by `[directions]`.

        "none" is 1, "truncated" the same above the noise, else 0. "wiener" takes a direction's response for what of it
        is signal, f·s, and makes the mean square of what is then realised less what is wanted least: f·s² / ((f·s)² +
        crowding); never less than the pseudo-inverse, which noise makes do too little.
        """
        some, f = self.exists.copy(), self.signal
        if self.regularization == "truncated":
            some &= self.above
        if self.regularization != "wiener":
            return some.astype(np.float64)
        square = np.where(some, self.singular, 1.0) ** 2
        least = np.where(f > 0, f**2 * square + self.crowding, 1.0)
        return np.where(some, np.maximum(1.0, f * square / least), 0.0)

    @property
    def above(self) -> np.ndarray:
        """Which directions stand above the noise `[directions]`: above its floor, or by what is realised of them."""
        return (self.singular > self.floor) | (self.signal > 0.5)

    @property
    def kept(self) -> np.ndarray:
        """Which directions are inverted at all `[directions]`."""
        return self.multiples > 0

    @property
    def trusted(self) -> np.ndarray:
        """Which directions a target may lie in `[directions]`: those above the noise; with "none", all that exist."""
        return self.kept if self.regularization == "none" else self.kept & self.above

    @cached_property
    def rows(self) -> np.ndarray:
        """Combinations of rows of the response that are the right singular vectors `[rows, kept]`."""
        return self.combinations[:, self.kept]

    def amounts(self, wanted: np.ndarray) -> np.ndarray:
        """Change along the right singular vectors that are kept, for dμ wanted `[components]`."""
        along = self.left.T @ (self.inverse @ wanted)
        return (self.multiples * along)[self.kept] / self.singular[self.kept]

    def met(self, wanted: np.ndarray) -> np.ndarray:
        """The part of dμ wanted `[components]` in directions above the noise."""
        trusted = self.left[:, self.trusted]
        return self.root @ (trusted @ (trusted.T @ (self.inverse @ wanted)))

    def share(self, wanted: np.ndarray) -> float:
        """Share of the square of dμ wanted `[components]` that is expected to be met; 0 where all of χ may be noise."""
        along = self.left.T @ (self.inverse @ wanted)
        size = float(wanted @ wanted)
        if self.regularization == "none":
            missed = wanted - self.root @ (self.left @ (self.kept * along))
            return 1.0 - float(missed @ missed) / size
        if not self.trusted.any():
            return 0.0
        missed = wanted - self.root @ (self.left @ (self.signal * self.multiples * along))
        amounts = self.amounts(wanted)
        noise = float(np.mean(np.sum(self.root**2, 1)) * (amounts**2 @ self.crowding[self.kept]))
        return max(0.0, 1.0 - (float(missed @ missed) + noise) / size)

    def expected(self, response: np.ndarray) -> np.ndarray:
        """dμ to be expected where weights made from χ have `response` `[components]`: each direction times its signal.

        Weights made of χ's rows follow their noise, whose square the response then has beside its signal.
        """
        return self.root @ (self.left @ (self.signal * (self.left.T @ (self.inverse @ response))))

    def square_error(self, response: np.ndarray) -> np.ndarray:
        """Standard error of the square of noise that `expected` takes off a response `[components]`.

        In units of the square it is √(2/directions), half of which, squared, is in the scatter of groups.
        """
        taken = (1.0 - self.signal) * (self.left.T @ (self.inverse @ response))
        return np.sqrt((self.root @ self.left) ** 2 @ taken**2 / self.noise_directions)


def spans(response: Response, direction: np.ndarray) -> bool:
    """Whether a direction `[data]` of mean 0 is a combination of χ's rows, which do not span all data."""
    squares, axes = np.linalg.eigh(response.gram())
    there = squares > CUTOFF**2 * squares[-1]
    along = axes[:, there].T @ response.of(direction) / np.sqrt(squares[there])
    return bool(along @ along > (1.0 - OUTSIDE) * float(response.counts @ direction**2))


def spectrum(noise: Noise, regularization: Regularization) -> Spectrum:
    """The spectrum of a response, from the eigenvalues of its Gram matrix."""
    with one_thread_each(1) as pool:  # small: threads would only wait for each other, and change the bits
        return pool.submit(taken_apart, noise, regularization).result()


def taken_apart(noise: Noise, regularization: Regularization) -> Spectrum:
    components = len(noise.gram)
    least = ROUNDING**2 * np.maximum(np.diag(noise.gram), noise.size)
    covariance = ledoit_wolf(noise.draws) + np.diag(least)
    squares, axes = eigh(covariance)
    squares = np.maximum(squares, np.finfo(np.float64).eps * components * squares[-1])
    root, inverse = (axes * np.sqrt(squares)) @ axes.T, (axes / np.sqrt(squares)) @ axes.T
    squares, left = eigh(inverse @ noise.gram @ inverse)
    order = np.argsort(squares)[::-1][: noise.response.data]
    singular, left = np.sqrt(np.maximum(squares[order], 0.0)), left[:, order]
    safe = np.where(singular > CUTOFF * singular[0], singular, math.inf)
    whitened = inverse @ noise.draws @ inverse
    combinations = inverse @ left / safe
    crowding = np.mean(np.sum((np.swapaxes(noise.cross @ inverse, 1, 2) @ combinations) ** 2, 1), 0)
    first = np.sqrt(np.maximum(np.array([eigh(each)[0][-1] for each in whitened]), 0.0))
    signal = np.clip(1.0 - noise_squares(noise, inverse)[: len(order)] / safe**2, 0.0, 1.0) * np.isfinite(safe)
    floor, directions = noise_floor(first), independent(whitened)
    return Spectrum(root, left, singular, signal, noise.rows(combinations), crowding, floor, directions, regularization)


def eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = torch.linalg.eigh(torch.from_numpy(np.ascontiguousarray(matrix)))
    return values.numpy(), vectors.numpy()


def ledoit_wolf(draws: np.ndarray) -> np.ndarray:
    """Mean of covariances `[draws, components, components]`, its correlations shrunk towards none.

    By the share of their squares that is error, as their scatter between draws tells it (Ledoit & Wolf 2004). For a
    single draw all of it is.
    """
    number, size = len(draws), np.sqrt(np.maximum(np.einsum("kcc->kc", draws).mean(0), 1e-300))
    each = draws / size[:, None] / size
    mean = each.mean(0)
    apart = ~np.eye(len(mean), dtype=bool)
    error = ((each - mean) ** 2).sum(0) / max(number * (number - 1), 1)
    square = float((mean**2)[apart].sum())
    kept = max(0.0, 1.0 - float(error[apart].sum()) / square) if square > 0 and number > 1 else 0.0
    return np.where(apart, kept, 1.0) * mean * size[:, None] * size


def noise_squares(noise: Noise, inverse: np.ndarray) -> np.ndarray:
    """Square of noise in each squared singular value, from the largest `[components]`.

    χ with part of a draw added, and less the draw over that part, have independent noise: what the one's response is
    along the singular vectors of the other is realised, and the rest of its singular value noise. This holds for
    whatever spectrum, where 1 − 1/s² would take what noise does to large and to small ones for the same.
    """
    found = np.zeros(len(inverse))
    gram, cross, draws = (inverse @ each @ inverse for each in (noise.beside, noise.cross, noise.draws))
    for part in (ADDED, -ADDED):
        made = gram + part * (cross + cross.swapaxes(1, 2)) + part**2 * draws
        other = gram + part * cross - cross.swapaxes(1, 2) / part - draws
        for one, two in zip(made, other, strict=True):
            squares, axes = eigh(one)
            realised = np.einsum("ci,cd,di->i", axes, two, axes)
            found += (squares - realised)[::-1] / (1 + part**2)
    return found / (2 * len(draws))


def independent(whitened: np.ndarray) -> float:
    """Independent directions of the data that noise lies in, by how draws `[draws, components, components]` scatter.

    Covariances of as many whitened components over n directions scatter by components·(components + 1)/n in square.
    """
    number, components = whitened.shape[:2]
    if number < 2:
        return math.inf
    mean = whitened.mean(0)
    scatter = float(((whitened - mean) ** 2).sum()) / (number - 1)
    level = float(np.trace(mean)) / components
    return components * (components + 1) * level**2 / max(scatter, 1e-300)
