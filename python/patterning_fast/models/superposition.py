"""The toy model of superposition (Elhage et al. 2022; learning coefficients along its training: arXiv:2310.06301)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TiedAutoencoder(nn.Module):
    """x `[batch, features]` to relu(Wᵀ W x + b): more features than `hidden` dimensions to hold them in.

    The columns of `weight` `[hidden, features]` are where the features lie. Raises ValueError for sizes below 1.
    """

    def __init__(self, features: int, hidden: int = 2) -> None:
        super().__init__()
        if min(features, hidden) < 1:
            raise ValueError(f"features and hidden must be at least 1, got {features} and {hidden}")
        self.weight = nn.Parameter(torch.randn(hidden, features) / hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight.T @ self.weight + self.bias)

    def dense_layers(self) -> list[tuple[str, str | None, bool, str]]:
        """Its layers, as kernels are told of them (see `posterior/dense.py`)."""
        return [("weight", None, False, "identity"), ("weight", "bias", True, "relu")]


def sparse_features(samples: int, features: int, probability: float, seed: int = 0) -> Tensor:
    """Samples `[samples, features]` of features that are uniform in [0, 1) with a probability, and else 0.

    Raises ValueError for a probability outside (0, 1].
    """
    if not 0 < probability <= 1:
        raise ValueError(f"probability must lie in (0, 1], got {probability}")
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(samples, features, generator=generator)
    return values * (torch.rand(samples, features, generator=generator) < probability)
