"""Which samples a chain's gradient sees at a step: a pure function of (seed, chain id, step), like the noise."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast.ops.reference.philox import Stream, words


def minibatch(seed: Tensor, chain_ids: Tensor, step: Tensor, batch_size: int, samples: int) -> Tensor:
    """Sample indices `[chains, batch_size]`, drawn uniformly with replacement (to within samples/2³²)."""
    index = torch.arange((batch_size + 3) // 4, device=chain_ids.device)
    drawn = words(Stream.minibatch, seed, chain_ids[:, None], step, index).flatten(1)
    return (drawn[:, :batch_size] * samples) >> 32
