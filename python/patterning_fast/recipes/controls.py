"""Weights that a plan's own must beat: the same numbers on other data."""

from __future__ import annotations

import torch
from torch import Tensor


def dealt_out(weights: Tensor, seed: int, classes: Tensor | None = None) -> Tensor:
    """The same weights in a random order; each stays within its class where `classes` (integers) are given."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(weights.numel(), generator=generator)
    found = torch.empty_like(weights).flatten()
    if classes is None:
        found[places] = weights.flatten()
    else:
        to = places[classes.flatten()[places].sort(stable=True).indices]
        found[to] = weights.flatten()[classes.flatten().sort(stable=True).indices]
    return found.view(weights.shape)


def alike(values: Tensor, count: int = 50) -> Tensor:
    """Numbers of `count` classes of like values: between their quantiles, of a million values at most."""
    some = values.flatten()[:: max(1, values.numel() // 2**20)]
    edges = torch.quantile(some, torch.linspace(0, 1, count + 1, dtype=some.dtype)[1:-1])
    return torch.bucketize(values, edges)


def non_negative(direction: Tensor, strength: float) -> Tensor:
    """Weights 1 + a·direction, cut at 0 and brought back to mean 1, with a such that rms(ρ − 1) is the strength."""

    def weights(length: float) -> Tensor:
        cut = (1 + length * direction / direction.square().mean().sqrt()).clamp(min=0)
        return cut / cut.mean()

    low, high = 0.0, 1.0
    while float((weights(high) - 1).square().mean().sqrt()) < strength and high < 1e3:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float((weights(middle) - 1).square().mean().sqrt()) < strength else (low, middle)
    return weights(high)
