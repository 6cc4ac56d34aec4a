"""`per_sample_langevin_step` in plain torch, computed in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from patterning_fast.ops.reference.normal import noise


def per_sample_langevin_step(
    params: Tensor,
    grads: Tensor,
    sample_weights: Tensor | None,
    center: Tensor,
    lr: Tensor,
    n_beta: Tensor,
    localization: Tensor,
    noise_scale: Tensor,
    chain_ids: Tensor,
    seed: Tensor,
    step: Tensor,
    sampled_fraction: float,
    gradient_noise_scale: Tensor,
) -> None:
    """The contract is that of `patterning_fast.ops.per_sample_langevin_step`."""
    batch = grads.shape[1]
    weighted = grads.double()
    if sample_weights is not None:
        weighted = weighted * sample_weights.double()[:, :, None]
    mean = weighted.mean(1)
    variance = (weighted - mean[:, None]).square().sum(1) / (batch - 1)
    w, eps = params.double(), lr.double()[:, None]
    drift = n_beta.double()[:, None] * mean + localization.double()[:, None] * (w - center.double())
    own_noise = (0.5 * eps * n_beta.double()[:, None]) ** 2 * (1 - sampled_fraction) * variance / batch
    index = torch.arange(params.shape[1], device=params.device)
    xi = noise_scale.double()[:, None] * noise(seed, chain_ids[:, None], step, index)
    params.copy_(w - 0.5 * eps * drift + (eps - own_noise).clamp(min=0).sqrt() * xi)
    total = variance.sum(1)
    signal = mean.square().sum(1) - total / batch
    gradient_noise_scale.copy_(torch.where(signal > 0, total / signal, torch.inf))
