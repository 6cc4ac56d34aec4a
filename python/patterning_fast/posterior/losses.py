"""Losses per sample or per token: `loss(model, batch)` returns `[batch]` or `[batch, tokens]`, in nats, unreduced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning_fast import ops
from patterning_fast.arguments import explained
from patterning_fast.domains import Holds, Mend
from patterning_fast.ops.sparse_features import SparseFeatures
from patterning_fast.posterior.decoders import LogitFactors, logit_factors

Batch = Tensor | tuple[Tensor, ...]
"""Samples along the first dimension; a tuple for inputs with targets, e.g. `(x, y)`."""

Data = Tensor | SparseFeatures | tuple[Tensor | SparseFeatures, ...]
"""What batches are taken from."""

Loss = Callable[[nn.Module, Batch], Tensor]

Probes = Annotated[Mapping[str, Data], Mend("name each set of samples: probes={'name': samples}"), Holds(1)]
"""Samples by name, whose losses are tracked."""


@explained
def next_token(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each next token: tokens `[batch, T + 1]` to `[batch, T]`.

    `model` maps tokens to logits, or to an object that has them as `logits`. A model that says what its logits are a
    product of, by a method `logit_factors(tokens)`, is asked for that instead, and so are the Hugging Face decoders in
    `posterior/decoders.py`: logits are then never held. Raises TypeError for a batch with targets, or a model without
    logits.
    """
    tokens, labels = inputs_and_labels(batch)
    factors = flat_factors(model, tokens)
    if factors is not None:
        losses = ops.linear_cross_entropy(
            factors.hidden, factors.unembedding, labels, offset=factors.offset, offset_scale=factors.offset_scale
        )
    else:
        logits = output_of("next_token", "logits [batch, T, vocabulary]", model, tokens)
        losses = F.cross_entropy(logits.flatten(0, -2), labels, reduction="none")
    return losses.view(tokens.shape)


def output_of(loss: str, wanted: str, model: nn.Module, inputs: Tensor) -> Tensor:
    """What a model returns, or its `logits` where it returns an object that has them."""
    output = model(inputs)
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"{loss} needs {wanted} from the model, but {type(model).__name__} returned {type(output).__name__}, "
            "which has no logits; if it is the body of a model, pass the model with its head"
        )
    return found


def inputs_and_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """Of tokens `[batch, T + 1]`, those to predict from, `[batch, T]`, and those to predict, `[batch · T]`."""
    if not isinstance(batch, Tensor):
        raise TypeError("next_token takes token ids [batch, T + 1] alone, without targets")
    return batch[:, :-1], batch[:, 1:].flatten().long().contiguous()


def flat_factors(model: nn.Module, tokens: Tensor) -> LogitFactors | None:
    """The model's logit factors, batch and position in one dimension; None for dtypes that the op does not take."""
    factors = logit_factors(model, tokens)
    if factors is None or factors.unembedding.dtype not in (torch.float32, torch.float64):
        return None
    hidden, unembedding, offset, offset_scale = factors
    return LogitFactors(
        hidden.flatten(0, 1).to(unembedding.dtype).contiguous(),  # under autocast a product may come as bfloat16
        unembedding.contiguous(),
        None if offset is None else offset.flatten(0, 1),
        None if offset_scale is None else offset_scale.flatten(),
    )


@explained
def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of class logits: `(x, classes [batch])` to `[batch]`.

    `model` maps x to logits, or to an object that has them as `logits`, as classifiers of Hugging Face do.
    """
    x, classes = batch
    logits = output_of("cross_entropy", "logits [batch, classes]", model, x)
    return F.cross_entropy(logits, classes, reduction="none")


@explained
def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """½|model(x) − y|² of each sample: `(x, y)` to `[batch]`; `model` may return an object with `logits`."""
    x, y = batch
    return 0.5 * (output_of("squared_error", "a tensor shaped as y", model, x) - y).square().flatten(1).sum(1)


@explained
def weighted_mean(loss: Loss, model: nn.Module, batch: Batch, weights: Tensor | None) -> Tensor:
    """Mean of ρ·l over a batch, a 0-d tensor to differentiate; `weights` ρ are shaped as the losses, None for all 1."""
    tokens, labels = inputs_and_labels(batch) if loss is next_token else (None, None)
    factors = None if tokens is None else flat_factors(model, tokens)
    if labels is not None and factors is not None:
        # The weights are known, so that the logits are made only once for losses and gradient.
        share = factors.hidden.new_full((labels.numel(),), 1 / labels.numel())
        total, _ = ops.weighted_linear_cross_entropy(
            factors.hidden,
            factors.unembedding,
            labels,
            share if weights is None else share * weights.flatten(),
            offset=factors.offset,
            offset_scale=factors.offset_scale,
        )
        return total
    losses = loss(model, batch)
    return (losses if weights is None else losses * weights).mean()
