"""Losses per sample or per token: `loss(model, batch)` returns `[batch]` or `[batch, tokens]`, in nats, unreduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from patterning_fast import ops

Batch = Tensor | tuple[Tensor, ...]
"""Samples along the first dimension; a tuple for inputs with targets, e.g. `(x, y)`."""

Loss = Callable[[nn.Module, Batch], Tensor]


class LogitFactors(NamedTuple):
    """What logits `[batch, T, vocabulary]` are made of: hidden @ unembeddingᵀ, plus offset_scale·offset where known."""

    hidden: Tensor
    """`[batch, T, width]`"""
    unembedding: Tensor
    """`[vocabulary, width]`"""
    offset: Tensor | None = None
    """`[batch, T, vocabulary]`"""
    offset_scale: Tensor | None = None
    """`[batch, T]`"""


def next_token(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each next token: tokens `[batch, T + 1]` to `[batch, T]`; the model maps tokens to logits.

    A model with a method `logit_factors(tokens)` never holds its logits.
    """
    tokens, labels = inputs_and_labels(batch)
    if hasattr(model, "logit_factors"):
        factors, labels = flat_factors(model, tokens), labels.flatten()
        return ops.linear_cross_entropy(
            factors.hidden, factors.unembedding, labels, offset=factors.offset, offset_scale=factors.offset_scale
        ).view(tokens.shape)
    logits = model(tokens)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(tokens.shape)


def inputs_and_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """Tokens to predict from and tokens to predict, each `[batch, T]`, of tokens `[batch, T + 1]`."""
    if not isinstance(batch, Tensor):
        raise TypeError("next_token takes token ids [batch, T + 1] alone, without targets")
    return batch[:, :-1], batch[:, 1:].long()


def flat_factors(model: nn.Module, tokens: Tensor) -> LogitFactors:
    """The model's logit factors with the dimensions of batch and position in one."""
    hidden, unembedding, offset, offset_scale = model.logit_factors(tokens)  # type: ignore[operator]
    return LogitFactors(
        hidden.flatten(0, 1).to(unembedding.dtype),  # under autocast a product may come as bfloat16
        unembedding,
        None if offset is None else offset.flatten(0, 1),
        None if offset_scale is None else offset_scale.flatten(),
    )


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of class logits: `(x, classes [batch])` to `[batch]`."""
    x, classes = batch
    return F.cross_entropy(model(x), classes, reduction="none")


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """½|model(x) − y|² of each sample: `(x, y)` to `[batch]`."""
    x, y = batch
    return 0.5 * (model(x) - y).square().flatten(1).sum(1)


def weighted_mean(loss: Loss, model: nn.Module, batch: Batch, weights: Tensor | None) -> Tensor:
    """Mean of ρ·l over a batch, a 0-d tensor to differentiate; `weights` ρ are shaped as the losses, None for all 1."""
    if loss is next_token and hasattr(model, "logit_factors"):
        # The weights are known, so that the logits are made only once for losses and gradient.
        tokens, labels = inputs_and_labels(batch)
        factors = flat_factors(model, tokens)
        share = factors.hidden.new_full((labels.numel(),), 1 / labels.numel())
        total, _ = ops.weighted_linear_cross_entropy(
            factors.hidden,
            factors.unembedding,
            labels.flatten(),
            share if weights is None else share * weights.flatten(),
            offset=factors.offset,
            offset_scale=factors.offset_scale,
        )
        return total
    losses = loss(model, batch)
    return (losses if weights is None else losses * weights).mean()
