"""`weighted_cross_entropy` and `linear_cross_entropy` in plain torch, in float64, logits held."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    ignore_index: int,
    losses: Tensor,
    grad_logits: Tensor | None,
) -> None:
    """The contract is that of csrc's WeightedCrossEntropy: losses `[tokens]`, the gradient of Σ weights·losses."""
    kept = labels != ignore_index
    target = torch.where(kept, labels, 0)
    if bool(((target < 0) | (target >= logits.shape[-1])).any()):
        raise ValueError("labels must lie in [0, vocabulary) or be ignore_index")
    log_p = logits.double().log_softmax(-1)
    losses.copy_(torch.where(kept, -log_p.gather(-1, target[:, None]).squeeze(-1), 0.0))
    if grad_logits is not None:
        scale = torch.ones_like(labels, dtype=torch.float64) if weights is None else weights.double()
        one_hot = torch.zeros_like(log_p).scatter_(-1, target[:, None], 1.0)
        grad_logits.copy_(torch.where(kept[:, None], scale[:, None] * (log_p.exp() - one_hot), 0.0))


def losses(
    hidden: Tensor,
    unembedding: Tensor,
    offset_scale: Tensor | None = None,
    *,
    labels: Tensor,
    offset: Tensor | None,
    ignore_index: int,
) -> Tensor:
    """Losses of `linear_cross_entropy`, of labels' shape, in hidden's own precision."""
    logits = hidden @ unembedding.mT
    if offset is not None and offset_scale is not None:
        logits = logits + offset_scale[..., None] * offset
    found = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=ignore_index, reduction="none")
    return found.view(labels.shape)


def linear_cross_entropy(
    hidden: Tensor,
    unembedding: Tensor,
    labels: Tensor,
    weights: Tensor | None,
    offset: Tensor | None,
    offset_scale: Tensor | None,
    ignore_index: int,
    losses: Tensor,
    grad_hidden: Tensor | None,
    grad_unembedding: Tensor | None,
    grad_offset_scale: Tensor | None,
) -> None:
    """The contract is that of csrc's LinearCrossEntropy."""
    h, u = hidden.double(), unembedding.double()
    logits = h @ u.mT
    if offset is not None and offset_scale is not None:
        logits += offset_scale.double()[..., None] * offset.double()
    gradient = torch.empty_like(logits)
    for chain in range(len(hidden)):
        of_chain = None if weights is None else weights[chain]
        weighted_cross_entropy(logits[chain], labels[chain], of_chain, ignore_index, losses[chain], gradient[chain])
    if grad_hidden is not None:
        grad_hidden.copy_(gradient @ u)
    if grad_unembedding is not None:
        grad_unembedding.copy_((gradient.mT @ h).sum_to_size(u.shape))
    if grad_offset_scale is not None and offset is not None:
        grad_offset_scale.copy_((gradient * offset.double()).sum(-1))
