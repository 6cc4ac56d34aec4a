"""The polygons that a toy model of superposition makes of features in two hidden dimensions (arXiv:2310.06301)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from patterning_fast.arguments import Count, Whole, checked
from patterning_fast.models.superposition import TiedAutoencoder

HELD = 0.5
"""A feature is held where its column is at least this share of the longest."""

IRREGULAR = 0.3
"""Neighbours of a regular k-gon are 2π/k apart, within this share of it."""

DEAD_BIAS = -0.25
"""Of a feature that is never said to be active; any negative number is as good."""


@dataclass(frozen=True)
@checked
class OneActive:
    """Samples with one active feature each: every feature at every magnitude, the limit of high sparsity."""

    x: Tensor
    """float32 `[samples, features]`"""
    feature: np.ndarray
    """Which is active `[samples]`."""
    magnitude: np.ndarray
    """How much `[samples]`, in (0, 1)."""


@checked
def one_active(features: Count, magnitudes: Count) -> OneActive:
    """Samples of `features` · `magnitudes`: midpoints of [0, 1], in place of draws from it."""
    levels = (np.arange(magnitudes) + 0.5) / magnitudes
    feature, magnitude = np.repeat(np.arange(features), magnitudes), np.tile(levels, features)
    x = torch.zeros(len(feature), features, dtype=torch.float32)
    x[torch.arange(len(feature)), torch.from_numpy(feature)] = torch.from_numpy(magnitude).float()
    return OneActive(x, feature, magnitude)


@dataclass(frozen=True)
@checked
class Polygons:
    """What models' columns make, one entry a model."""

    sides: np.ndarray
    """k of a regular k-gon; 0 for anything else."""
    positive: np.ndarray
    """Features that are not held and have a positive bias: they are said to be active always, by their mean."""
    held: np.ndarray
    """Which features are held `[models, features]`."""

    @property
    def names(self) -> np.ndarray:
        """ "5" for a pentagon, "4++" for a square and two features left out with positive biases, or "other"."""
        plus = np.array([f"{k}" + "+" * more for k, more in zip(self.sides, self.positive, strict=True)], dtype=object)
        return np.where(self.sides > 0, plus, "other")


@checked
def polygons(parameters: np.ndarray, features: Count) -> Polygons:
    """Tell apart models of two hidden dimensions by their parameters `[models, 3 · features]`, as in one vector.

    Raises ValueError for another number of parameters.
    """
    if parameters.ndim != 2 or parameters.shape[1] != 3 * features:
        raise ValueError(f"parameters must be [models, {3 * features}], got {list(parameters.shape)}")
    across, up, bias = np.split(parameters.astype(np.float64), 3, axis=1)
    length = np.hypot(across, up)
    held = length >= HELD * np.maximum(length.max(1, keepdims=True), 1e-12)
    sides = held.sum(1)
    angle = np.sort(np.where(held, np.arctan2(up, across), np.inf), axis=1)
    closed = np.concatenate((angle, np.full((len(angle), 1), np.inf)), axis=1)
    closed[np.arange(len(closed)), sides] = angle[:, 0] + 2 * math.pi
    with np.errstate(invalid="ignore"):
        gaps = np.diff(closed, axis=1) * sides[:, None] / (2 * math.pi)
    uneven = np.where(np.isfinite(gaps), np.abs(gaps - 1), 0.0).max(1)
    regular = (uneven <= IRREGULAR) & (sides > 1)
    return Polygons(np.where(regular, sides, 0), (~held & (bias > 0)).sum(1), held)


@checked
def left_out(parameters: np.ndarray, features: Count, wanted: Count) -> np.ndarray:
    """Which of the first `wanted` features a model leaves out and can still learn `[models]`; −1 for none.

    `parameters` are `[models, 3 · features]`. Of several it is the one with the shortest column. A feature that is not
    held and has a negative bias is dead: ReLU is 0 on all data, so are its gradients, and no weights bring it back.
    Raises ValueError for another number of parameters, or more wanted features than there are.
    """
    if wanted > features:
        raise ValueError(f"wanted must be at most the {features} features, got {wanted}")
    held = polygons(parameters, features).held[:, :wanted]
    across, up, bias = (each[:, :wanted] for each in np.split(parameters, 3, axis=1))
    learns = ~held & (bias > 0)
    return np.where(learns.any(1), np.where(learns, np.hypot(across, up), np.inf).argmin(1), -1)


@checked
def regular_polygon(features: Count, sides: Count, magnitudes: Count, positive: Whole = 0) -> TiedAutoencoder:
    """The model at the critical point that a k-gon is, on `one_active(features, magnitudes)`.

    The first `sides` features are its corners, of the length and bias with the least loss. Of the others `positive`
    have their mean as bias, and the rest are dead. Raises ValueError for numbers that do not add up.
    """
    if not 2 <= sides <= features or not 0 <= positive <= features - sides:
        raise ValueError(f"{features} features make no {sides}-gon with {positive} others of positive bias")
    levels = (np.arange(magnitudes) + 0.5) / magnitudes
    turns = 2 * math.pi * np.arange(sides) / sides
    square, bias = best_corner(np.cos(turns), levels)
    model = TiedAutoencoder(features)
    biases = np.full(features, DEAD_BIAS)
    biases[:sides], biases[sides : sides + positive] = bias, levels.mean() / features
    with torch.no_grad():
        model.weight.zero_()
        model.weight[:, :sides] = math.sqrt(square) * torch.from_numpy(np.stack((np.cos(turns), np.sin(turns))))
        model.bias.copy_(torch.from_numpy(biases))
    return model


def best_corner(cosines: np.ndarray, levels: np.ndarray) -> tuple[float, float]:
    """Squared length and bias of all corners for the least loss, given the cosines of one corner with every other."""

    def loss(at: np.ndarray) -> float:
        said = np.maximum(at[0] * cosines[:, None] * levels + at[1], 0.0)
        said[0] -= levels
        return float(np.square(said).sum())

    exact = {"xatol": 1e-12, "fatol": 1e-16, "maxiter": 10_000}
    square, bias = scipy.optimize.minimize(loss, np.array([1.2, -0.1]), method="Nelder-Mead", options=exact).x
    return float(square), float(bias)
