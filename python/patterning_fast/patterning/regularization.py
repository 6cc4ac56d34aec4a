"""What of χ is signal: its singular values in units of their noise, and how far each is inverted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from patterning_fast.engine.workers import one_thread_each
from patterning_fast.patterning.estimates import ROUNDING, Estimates
from patterning_fast.patterning.response import Response

Regularization = Literal["wiener", "truncated", "none"]

CUTOFF = 1e-7
"""Singular values under this share of the largest are zero: the Gram matrix squares them, in 16 digits."""

OUTSIDE = 1e-6
"""Share of a direction's square that rounding may leave outside the rows of χ that it was made from."""


@dataclass(frozen=True)
class Spectrum:
    """R = noise·left·singular·rightᵀ: the singular values of the response with each row in units of its error.

    Noise alone has singular values about 1: up to 1 + √crowding, and from 1 − √crowding (Marchenko & Pastur 1967).
    """

    noise: np.ndarray
    """`[components]`: norm over data of each row's error, nats."""
    left: np.ndarray
    """`[components, directions]`, orthonormal."""
    singular: np.ndarray
    """`[directions]`, the largest first."""
    crowding: float
    """Components over the number of independent directions of the data that noise lies in."""
    regularization: Regularization

    @cached_property
    def signal(self) -> np.ndarray:
        """Share of each direction's response that is signal, max(0, 1 − 1/s²) (Efron & Morris 1972) `[directions]`."""
        return np.maximum(0.0, 1.0 - 1.0 / np.maximum(self.singular, 1e-150) ** 2)

    @cached_property
    def exists(self) -> np.ndarray:
        """Which directions are more than rounding `[directions]`."""
        return self.singular > CUTOFF * self.singular[0] if len(self.singular) else np.zeros(0, dtype=bool)

    @cached_property
    def inverted(self) -> np.ndarray:
        """Change along each right singular vector for one unit of target along the left one `[directions]`.

        "none" is 1/s, the pseudo-inverse, "truncated" the same above the noise. "wiener" takes χ for what is left of
        it when each direction is shrunk to its signal, f·s, and makes the mean square of what is then realised less
        what is wanted least: f·s / ((f·s)² + crowding).
        """
        s, f, some = self.singular, self.signal, self.exists.copy()
        safe = np.where(some, s, 1.0)
        if self.regularization == "wiener":
            return np.where(some, f * safe / ((f * safe) ** 2 + self.crowding), 0.0)
        if self.regularization == "truncated":
            some &= s > self.edge
        return np.where(some, 1.0 / safe, 0.0)

    @property
    def edge(self) -> float:
        """The largest singular value that noise alone has."""
        return float(1.0 + np.sqrt(self.crowding))

    @property
    def kept(self) -> np.ndarray:
        """Which directions are inverted at all `[directions]`."""
        return self.inverted > 0

    @property
    def trusted(self) -> np.ndarray:
        """Which directions a target may lie in `[directions]`: those above the noise; with "none", all that exist."""
        return self.kept if self.regularization == "none" else self.kept & (self.singular > self.edge)

    @cached_property
    def rows(self) -> np.ndarray:
        """Combinations of components whose response, over data, are the right singular vectors `[components, kept]`."""
        return self.left[:, self.kept] / self.singular[self.kept] / self.noise[:, None]

    def amounts(self, wanted: np.ndarray) -> np.ndarray:
        """Change along the right singular vectors that are kept, for dμ wanted `[components]`."""
        return (self.inverted * (self.left.T @ (wanted / self.noise)))[self.kept]

    def met(self, wanted: np.ndarray) -> np.ndarray:
        """The part of dμ wanted `[components]` in directions above the noise."""
        trusted = self.left[:, self.trusted]
        return self.noise * (trusted @ (trusted.T @ (wanted / self.noise)))

    def spans(self, response: Response, direction: np.ndarray) -> bool:
        """Whether a direction `[data]` of mean 0 is a combination of χ's rows, as the modes of χ are."""
        along = self.left.T @ (response.of(direction) / self.noise)
        inside = float(np.sum((along[self.exists] / self.singular[self.exists]) ** 2))
        return inside > (1.0 - OUTSIDE) * float(response.counts @ direction**2)

    def expected(self, response: np.ndarray) -> np.ndarray:
        """dμ to be expected where weights made from χ have `response` `[components]`: each direction times its signal.

        Weights made of χ's rows follow their noise, whose square the response then has beside its signal.
        """
        return self.noise * (self.left @ (self.signal * (self.left.T @ (response / self.noise))))


def spectrum(response: Response, estimates: Estimates, regularization: Regularization) -> Spectrum:
    """The spectrum of a response, from the eigenvalues of its Gram matrix."""
    gram = response.gram()
    noise = np.maximum(response.scale * estimates.error_norm, ROUNDING * np.sqrt(np.diag(gram)))
    noise[noise == 0] = 1.0  # a component that answers to nothing
    scaled = torch.from_numpy(gram / noise[:, None] / noise)
    with one_thread_each(1) as pool:  # small: threads would only wait for each other, and change the bits
        eigenvalues, left = (each.numpy() for each in pool.submit(torch.linalg.eigh, scaled).result())
    order = np.argsort(eigenvalues)[::-1][: response.data]
    singular = np.sqrt(np.maximum(eigenvalues[order], 0.0))
    crowding = len(gram) / estimates.noise_directions
    return Spectrum(noise, left[:, order], singular, crowding, regularization)
