"""The toy model of superposition (Elhage et al. 2022; learning coefficients along its training: arXiv:2310.06301).

Its data are `pf.SparseFeatures`, with themselves as targets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patterning_fast.arguments import Count, checked


@checked
class TiedAutoencoder(nn.Module):
    """x `[batch, features]` to relu(Wᵀ W x + b): more features than `hidden` dimensions to hold them in.

    The columns of `weight` `[hidden, features]` are where the features lie. Raises ValueError for sizes below 1.
    """

    def __init__(self, features: Count, hidden: Count = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden, features) / hidden**0.5)
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.weight.T @ self.weight + self.bias)

    def dense_layers(self) -> list[tuple[str, str | None, bool, str]]:
        """Its layers, as kernels are told of them (see `posterior/dense.py`)."""
        return [("weight", None, False, "identity"), ("weight", "bias", True, "relu")]
