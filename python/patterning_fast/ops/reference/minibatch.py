"""Which samples a gradient sees at a step: a pure function of (seed, replica, step), like the noise."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast.ops.reference.philox import Stream, words


def minibatch(
    seed: Tensor,
    replicas: Tensor,
    step: Tensor,
    batch_size: int,
    samples: int,
    stream: Stream = Stream.minibatch,
) -> Tensor:
    """Sample indices `[replicas, batch_size]`, drawn uniformly with replacement (to within samples/2³²)."""
    index = torch.arange((batch_size + 3) // 4, device=replicas.device)
    drawn = words(stream, seed, replicas[:, None], step, index).flatten(1)
    return (drawn[:, :batch_size] * samples) >> 32
