"""Losses per sample or per token: `loss(model, batch)` returns `[batch]` or `[batch, tokens]`, in nats, unreduced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning_fast import ops
from patterning_fast.arguments import checked, explained
from patterning_fast.domains import Holds, Mend
from patterning_fast.ops.sparse_features import SparseFeatures
from patterning_fast.posterior.decoders import LogitFactors, logit_factors

Batch = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""Samples along the first dimension; a tuple for inputs with targets, e.g. `(x, y)`; a mapping for named tensors."""

Data = Tensor | SparseFeatures | tuple[Tensor | SparseFeatures, ...] | Mapping[str, Tensor]
"""What batches are taken from."""

Loss = Callable[[nn.Module, Batch], Tensor]
"""May have an attribute `present`, which says which of its values are data: see `masked`."""

OF_LANGUAGE_MODELS = ("input_ids", "attention_mask", "labels")
"""What `causal_lm` knows of a batch."""

NO_LABEL = -100

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
    return cross_entropies("next_token", model, tokens, labels)


def cross_entropies(loss: str, model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy `[batch, T]` of labels `[batch · T]`, from tokens `[batch, T]`."""
    factors = flat_factors(model, tokens)
    if factors is not None:
        losses = ops.linear_cross_entropy(
            factors.hidden, factors.unembedding, labels, offset=factors.offset, offset_scale=factors.offset_scale
        )
    else:
        logits = output_of(loss, "logits [batch, T, vocabulary]", model, tokens)
        losses = F.cross_entropy(logits.flatten(0, -2), labels, reduction="none")
    return losses.view(tokens.shape)


@explained
def causal_lm(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each next token of a batch as Hugging Face has it: `input_ids` `[batch, T + 1]` to `[batch, T]`.

    `labels`, where given, are what is to be predicted: those of -100 have no loss. Without them the tokens are, and
    those that `attention_mask` leaves out have no loss. What has no loss is no data: it is absent from L, from χ and
    from weights (see `masked`). Samples must be padded on the right, where padding changes nothing before it.

    Raises TypeError for a batch without `input_ids`, or with other names; ValueError for padding on the left, and for
    labels that are neither token ids nor -100.
    """
    tokens, labels = labelled(batch)
    losses = cross_entropies("causal_lm", model, tokens, labels)
    return torch.where(predicted(batch), losses, 0.0)


def predicted(batch: Batch) -> Tensor:
    """Which next tokens of a batch of `causal_lm` are data, bool `[batch, T]`."""
    named = as_named(batch)
    if "labels" in named:
        return named["labels"][:, 1:] != NO_LABEL
    if "attention_mask" not in named:
        return torch.ones_like(named["input_ids"][:, 1:], dtype=torch.bool)
    mask = named["attention_mask"].bool()
    return mask[:, 1:] & mask[:, :-1]


def predicted_of_all(data: Data) -> Tensor:
    """`predicted`; raises ValueError for samples that are padded on the left, and labels that mean nothing."""
    named = as_named(data)  # type: ignore[arg-type]
    labels, mask = named.get("labels"), named.get("attention_mask")
    if labels is not None and bool(((labels < 0) & (labels != NO_LABEL)).any()):
        lowest = int(labels[labels != NO_LABEL].min())
        raise ValueError(f"causal_lm: labels must be token ids, or {NO_LABEL} where there are none, got {lowest}")
    if mask is not None and bool((mask[:, 1:] > mask[:, :-1]).any()):
        raise ValueError(
            "causal_lm: attention_mask has padding before tokens; pad on the right (tokenizer.padding_side = 'right'), "
            "where a causal model needs no mask"
        )
    return predicted(data)  # type: ignore[arg-type]


causal_lm.present = predicted_of_all  # type: ignore[attr-defined]


def labelled(batch: Batch) -> tuple[Tensor, Tensor]:
    """Tokens to predict from `[batch, T]`, and labels `[batch · T]`, 0 where there are none."""
    named = as_named(batch)
    labels = named.get("labels", named["input_ids"])[:, 1:]
    return named["input_ids"][:, :-1], labels.clamp(min=0).flatten().long().contiguous()


def as_named(batch: Batch) -> Mapping[str, Tensor]:
    """A batch of `causal_lm`; raises TypeError for others."""
    if not isinstance(batch, Mapping) or "input_ids" not in batch or set(batch) - set(OF_LANGUAGE_MODELS):
        given = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(
            "causal_lm takes a mapping of input_ids and, where there are any, attention_mask and labels, "
            f"got {given}; for token ids alone take next_token"
        )
    return batch


@dataclass(frozen=True)
class Masked:
    """A loss per token, and which tokens are data. See `masked`."""

    loss: Loss
    present: Callable[[Batch], Tensor]

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return torch.where(self.present(batch), self.loss(model, batch), 0.0)


@checked
def masked(loss: Loss, present: Callable[[Batch], Tensor]) -> Masked:
    """A loss some of whose positions are no data, such as padding.

    Args:
        loss: `loss(model, batch)` to `[batch, tokens]`.
        present: from a batch to which of its losses are data, bool `[batch, tokens]`; of the batch alone, e.g.
            `lambda batch: batch["attention_mask"][:, 1:].bool()`.

    The others are absent from L, which is a mean over those that are there, from the columns of χ, and from weights.
    """
    return Masked(loss, present)


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


def inputs_and_targets(loss: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """The two tensors of a batch."""
    if isinstance(batch, Mapping):
        raise TypeError(f"{loss} takes a pair (x, y), got a mapping of {', '.join(batch)}; pass the two as a tuple")
    x, y = batch
    return x, y


@explained
def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of class logits: `(x, classes [batch])` to `[batch]`.

    `model` maps x to logits, or to an object that has them as `logits`, as classifiers of Hugging Face do.
    """
    x, classes = inputs_and_targets("cross_entropy", batch)
    logits = output_of("cross_entropy", "logits [batch, classes]", model, x)
    return F.cross_entropy(logits, classes, reduction="none")


@explained
def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """½|model(x) − y|² of each sample: `(x, y)` to `[batch]`; `model` may return an object with `logits`."""
    x, y = inputs_and_targets("squared_error", batch)
    return 0.5 * (output_of("squared_error", "a tensor shaped as y", model, x) - y).square().flatten(1).sum(1)


INPUTS_AND_LABELS: dict[Loss, Callable[[Batch], tuple[Tensor, Tensor]]] = {
    next_token: inputs_and_labels, causal_lm: labelled,
}  # fmt: skip
"""Losses that are the cross entropy of next tokens: what is predicted from what."""


def is_of_tokens(loss: Loss) -> bool:
    """Whether a loss is one of these, itself."""
    return any(loss is each for each in INPUTS_AND_LABELS)


@explained
def weighted_mean(loss: Loss, model: nn.Module, batch: Batch, weights: Tensor | None) -> Tensor:
    """Mean of ρ·l over a batch, a 0-d tensor to differentiate; `weights` ρ are shaped as the losses, None for all 1."""
    return mean_and_losses(loss, model, batch, weights)[0]


@explained
def mean_and_losses(loss: Loss, model: nn.Module, batch: Batch, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """`weighted_mean`, and the losses l that it is a mean of, which are not for differentiating."""
    tokens, labels = INPUTS_AND_LABELS[loss](batch) if is_of_tokens(loss) else (None, None)
    factors = None if tokens is None else flat_factors(model, tokens)
    if tokens is not None and labels is not None and factors is not None:
        # The weights are known, so that the logits are made only once for losses and gradient.
        share = factors.hidden.new_full((labels.numel(),), 1 / labels.numel())
        total, flat = ops.weighted_linear_cross_entropy(
            factors.hidden,
            factors.unembedding,
            labels,
            share if weights is None else share * weights.flatten(),
            offset=factors.offset,
            offset_scale=factors.offset_scale,
        )
        return total, flat.view(tokens.shape)
    losses = loss(model, batch)
    return (losses if weights is None else losses * weights).mean(), losses.detach()
