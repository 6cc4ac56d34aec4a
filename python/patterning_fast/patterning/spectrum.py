"""The spectrum of standardised χ, beside that of its noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh
from scipy.stats import t as student

from patterning_fast.patterning.noise import InnerProducts

FALSE_POSITIVES = 0.05
"""How often noise alone may pass the floor."""


class Repeat(NamedTuple):
    """Inner products `[components, components]` of an estimate repeated with other noise, z-scored anew."""

    gram: np.ndarray
    with_truth: np.ndarray
    """Of the truth it is made from, in rows, with the repeat, in columns."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values and component loadings of z-scored χ, from inner products over its data."""

    products: np.ndarray
    """`[draws, components, draws, components]` of z-scored χ, draw 0, and of draws of its noise in the same units."""
    data: int
    centring: np.ndarray
    """Takes out the mean over components, where it is to be: `[components, components]`."""

    @classmethod
    def of(cls, summed: InnerProducts, scale: np.ndarray, centre_data: bool) -> Spectrum:
        """From inner products, the scale of each component `[components]`, and whether to centre each datum."""
        components = len(scale)
        products = summed.products / scale[:, None, None] / scale
        return cls(products, summed.data, np.eye(components) - (1 / components if centre_data else 0))

    @cached_property
    def noise(self) -> np.ndarray:
        """Expected inner products of χ's noise, before centring."""
        return np.einsum("kckd->cd", self.products[1:, :, 1:]) / (len(self.products) - 1)

    @property
    def rank(self) -> int:
        """Singular values that centring leaves free."""
        return min(round(float(np.trace(self.centring))), self.data - 1)

    def leading(self, gram: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The first singular values `[number]` and left vectors `[components, number]` of rows of these inner products.

        Centred first.
        """
        last = len(gram) - 1
        eigenvalues, vectors = eigh(self.centring @ gram @ self.centring, subset_by_index=[last - number + 1, last])
        return np.sqrt(np.maximum(eigenvalues[::-1], 0.0)), vectors[:, ::-1]

    @cached_property
    def modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Singular values of χ `[rank]`, and left vectors `[components, rank]`, the largest component positive."""
        values, vectors = self.leading(self.products[0, :, 0], self.rank)
        largest = np.abs(vectors).argmax(0)
        return values, vectors * np.sign(vectors[largest, np.arange(len(values))])

    def without_noise(self, values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Singular values less the square that noise is expected to add to them; 0 where it is all of it."""
        square = values**2 - np.sum(vectors * (self.noise @ vectors), 0)
        return np.sqrt(np.maximum(square, 0.0))

    @cached_property
    def truth(self) -> np.ndarray:
        """Inner products of χ without its noise, before centring; no square negative."""
        squares, axes = eigh(self.products[0, :, 0] - self.noise)
        return (axes * np.maximum(squares, 0.0)) @ axes.T

    @cached_property
    def shrinkage(self) -> np.ndarray:
        """Makes rows of inner products `truth` of those of χ, from the left, changing them least (Olkin & Pukelsheim
        1982): `[components, components]`.
        """
        root, inverse = roots(self.products[0, :, 0])
        return inverse @ roots(root @ self.truth @ root)[0] @ inverse

    def repeat(self, contrast: np.ndarray) -> Repeat:
        """χ without its noise, and with that of a combination of the draws of noise, `[draws - 1]`, |u| = 1.

        With its own noise left in, as in a plain bootstrap, modes would look stronger and more stable than they are.
        """
        cross = self.shrinkage @ np.tensordot(contrast, self.products[0, :, 1:], (0, 1))
        noise = np.tensordot(np.tensordot(contrast, self.products[1:, :, 1:], (0, 0)), contrast, (1, 0))
        gram = self.truth + cross + cross.T + noise
        square = gram.diagonal()  # that of a component without signal may be rounding alone, of either sign
        there = square > len(gram) * np.finfo(np.float64).eps * square.max()
        scale = np.sqrt(np.where(there, square, 0.0) / self.data)
        return Repeat(ratio(gram, np.outer(scale, scale)), ratio(self.truth + cross, scale))

    def floor(self) -> float:
        """What the first singular value of noise alone stays below: see `noise_floor`."""
        draws = range(1, len(self.products))
        return noise_floor(np.array([self.leading(self.products[draw, :, draw], 1)[0][0] for draw in draws]))

    def marchenko_pastur(self) -> float:
        """Upper edge of the spectrum of noise, all of it as strong as the noisiest component's and independent."""
        components = len(self.centring)
        return math.sqrt(self.noise.diagonal().max()) * (1 + math.sqrt(components / self.data))


def noise_floor(first: np.ndarray) -> float:
    """What the first singular value of noise alone stays below in all but `FALSE_POSITIVES` of runs (Horn 1965).

    From the first singular values of draws of noise `[draws]`, log-normal: a prediction bound, for one more such value
    when their mean and spread are only known from these. However many modes are signal, the first that is not stays
    below the first of noise alone (Weyl's inequality). NaN for a single draw, 0 where there is no noise.
    """
    draws = len(first)
    if draws < 2:
        return math.nan
    if not first.all():
        return 0.0
    logs = np.log(first)
    quantile = student.ppf(1 - FALSE_POSITIVES, draws - 1) * math.sqrt(1 + 1 / draws)
    return float(np.exp(logs.mean() + quantile * logs.std(ddof=1)))


def roots(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric square root of a positive matrix, and its pseudo-inverse."""
    squares, axes = eigh(gram)
    there = squares > len(gram) * np.finfo(np.float64).eps * squares[-1]
    values = np.sqrt(np.where(there, squares, 0.0))
    return (axes * values) @ axes.T, (axes * ratio(there.astype(np.float64), values)) @ axes.T


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
