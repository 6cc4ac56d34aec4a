"""Losses per sample or per token: `loss(model, batch)` returns `[batch]` or `[batch, tokens]`, in nats, unreduced."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

Batch = Tensor | tuple[Tensor, ...]
"""Samples along the first dimension; a tuple for inputs with targets, e.g. `(x, y)`."""

Loss = Callable[[nn.Module, Batch], Tensor]


def next_token(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each next token: tokens `[batch, T + 1]` to `[batch, T]`; the model maps tokens to logits."""
    if not isinstance(batch, Tensor):
        raise TypeError("next_token takes token ids [batch, T + 1] alone, without targets")
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, -2), batch[:, 1:].flatten().long(), reduction="none").view(len(batch), -1)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of class logits: `(x, classes [batch])` to `[batch]`."""
    x, classes = batch
    return F.cross_entropy(model(x), classes, reduction="none")


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """½|model(x) − y|² of each sample: `(x, y)` to `[batch]`."""
    x, y = batch
    return 0.5 * (model(x) - y).square().flatten(1).sum(1)
