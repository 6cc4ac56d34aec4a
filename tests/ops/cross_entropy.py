"""How far a cross entropy in float may be from the exact one."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 2.0**-24
"""Largest relative error of one float operation."""
ADDITIONS = 64
"""Float additions that one term of a sum of exponentials goes through, at most."""


def bounds(
    logits: Tensor, labels: Tensor, weights: Tensor, ignore_index: int, logit_error: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Bounds of the errors of the losses and of the gradient of the logits, float64.

    The logits are off by `logit_error`, of the losses' shape. log Σexp is 1-Lipschitz in their largest error, and so
    is the label's logit. Then the sum: exp is right to 2 roundings, its argument (a difference from the largest logit)
    to one of that difference, which averages to log(vocabulary) at most under the softmax; each term is added
    ADDITIONS times at most. The log and its sum with two logits round relative to themselves: 3 more.
    """
    log_p = logits.double().log_softmax(-1)
    spread = torch.tensor(float(logits.shape[-1])).log().double()
    of_sum = ROUNDING * (ADDITIONS + 2 + spread)
    kept = labels != ignore_index
    loss = -log_p.gather(-1, torch.where(kept, labels, 0)[..., None]).squeeze(-1)
    error = torch.as_tensor(logit_error, dtype=torch.float64, device=logits.device)
    loss_bound = torch.where(kept, 2 * error + of_sum + 3 * ROUNDING * (spread + loss), 0.0)
    # A probability is a term over the sum: the error of each, relative, and two roundings of the scale and the product.
    # The rounded difference moves p by p |x - max| 2^-24, and p |x - max| < 1. At the label, w is then taken off.
    p_bound = log_p.exp() * (2 * error + of_sum + 6 * ROUNDING)[..., None] + 2 * ROUNDING
    return loss_bound, torch.where(kept, weights.double().abs(), 0.0)[..., None] * p_bound
