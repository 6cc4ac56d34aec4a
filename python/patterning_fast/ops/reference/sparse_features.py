"""Samples of sparse features: a pure function of (seed, sample), so that none need be kept."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast.ops.reference.philox import Stream, words


def sparse_features(presence: Tensor, seed: Tensor, samples: Tensor) -> Tensor:
    """Features `[..., features]` of samples `[...]`: each uniform in [0, 1) with probability `presence`, and else 0."""
    zero = torch.zeros((), dtype=torch.int64, device=samples.device)
    index = torch.arange((len(presence) + 3) // 4, device=samples.device)
    drawn = words(Stream.data, seed, samples[..., None], zero, index).flatten(-2)[..., : len(presence)]
    uniform = (drawn >> 8).float() * 2.0**-24
    return torch.where(uniform < presence, uniform / presence, 0.0)
