"""`langevin_step` in plain torch, computed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast.ops.reference.normal import noise


def langevin_step(
    params: Tensor,
    grads: Tensor,
    center: Tensor,
    row_starts: Tensor,
    center_starts: Tensor,
    lr: Tensor,
    n_beta: Tensor,
    localization: Tensor,
    noise_scale: Tensor,
    chain_ids: Tensor,
    seed: Tensor,
    step: Tensor,
) -> None:
    """The contract is that of `patterning_fast.ops.langevin_step`, on flat rows."""
    chain = torch.repeat_interleave(row_starts.diff(), output_size=params.numel())
    index = torch.arange(params.numel(), device=params.device) - row_starts[chain]
    w, g, w_star = params.double(), grads.double(), center[center_starts[chain] + index].double()
    drift = n_beta.double()[chain] * g + localization.double()[chain] * (w - w_star)
    xi = noise(seed, chain_ids[chain], step, index)
    spread = noise_scale.double()[chain] * lr.double()[chain].sqrt()
    params.copy_(w - 0.5 * lr.double()[chain] * drift + spread * xi)
    grads.zero_()
