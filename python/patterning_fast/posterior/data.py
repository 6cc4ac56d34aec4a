"""Samples as tensors: what the library asks of data, wherever data comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn

from patterning_fast.callbacks import calling
from patterning_fast.ops.sparse_features import SparseFeatures
from patterning_fast.plain_torch import without_inference
from patterning_fast.posterior.losses import Batch, Data, Loss

TOKENS = "input_ids"
"""The token ids among the tensors of a mapping, by the name that Hugging Face gives them."""

MOST_SAMPLES = 2**20
"""Of data that are made where they are looked at, what is held at once."""


def check_data(name: str, data: Data, model: nn.Module) -> None:
    """Raise TypeError or ValueError unless `data` is samples along a common first dimension that `model` can take.

    Token ids are held to what the model says of itself, where it does: attributes `vocabulary` and `context`, or
    Hugging Face's `config.vocab_size` and `config.max_position_embeddings`.
    """
    tensors = parts_of(data)
    if not tensors or not all(isinstance(tensor, Tensor | SparseFeatures) for tensor in tensors):
        raise TypeError(f"{name} must be a tensor, or a tuple or mapping of tensors, got {type(data).__name__}")
    lengths = [0 if isinstance(tensor, Tensor) and not tensor.dim() else len(tensor) for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name}: its tensors must agree on the number of samples, got {lengths}")
    tokens = data.get(TOKENS, tensors[0]) if isinstance(data, Mapping) else tensors[0]
    if isinstance(tokens, SparseFeatures):
        return
    if lengths[0] == 0 or tokens.numel() == 0:
        raise ValueError(f"{name} is empty: it needs at least one sample along the first dimension")
    if tokens.is_floating_point() or tokens.dim() != 2:
        return
    config = getattr(model, "config", None)
    vocabulary = getattr(model, "vocabulary", getattr(config, "vocab_size", None))
    context = getattr(model, "context", getattr(config, "max_position_embeddings", None))
    if isinstance(vocabulary, int) and (int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary):
        raise ValueError(
            f"{name}: token ids lie in [{int(tokens.min())}, {int(tokens.max())}], outside the model's vocabulary "
            f"[0, {vocabulary}); was the text encoded with another tokenizer, or the ids cast to a narrower integer?"
        )
    if isinstance(context, int) and tokens.shape[1] > context + 1:
        raise ValueError(
            f"{name}: samples of {tokens.shape[1]} tokens are longer than the model's context of {context} "
            f"(and one more, the last to predict); cut them shorter"
        )


def sample_count(data: Data) -> int:
    """Number of samples; raises ValueError for data that are no samples."""
    first = next(iter(parts_of(data)), ())
    if isinstance(first, tuple) or (isinstance(first, Tensor) and not first.dim()):
        raise ValueError("data must be samples along the first dimension, got none; pass at least one, e.g. data[None]")
    return len(first)


def bytes_each(data: Data) -> int:
    """Bytes of a sample."""
    one = parts_of(take(data, slice(0, 1)))
    return sum(each.numel() * each.element_size() for each in one if isinstance(each, Tensor))


def take(data: Data, which: Tensor | slice) -> Batch:
    """The samples at `which`."""
    return parts_mapped(lambda part: part[which], data)


def held(name: str, data: Data) -> Batch:
    """All samples as tensors; raises ValueError where they are made on the spot, and too many to hold."""
    if not any(isinstance(each, SparseFeatures) for each in parts_of(data)):
        return data  # type: ignore[return-value]
    if sample_count(data) > MOST_SAMPLES:
        raise ValueError(
            f"{name} has {sample_count(data):,} samples, of which {MOST_SAMPLES:,} can be evaluated: name probes of "
            "fewer, and loss_samples"
        )
    return take(data, slice(None))


@overload
def to_device(data: Batch, device: str) -> Batch: ...


@overload
def to_device(data: Data, device: str) -> Data: ...


def to_device(data: Data, device: str) -> Data:
    """The same samples on `device`, as tensors that autograd can save."""

    def moved(part: Tensor | SparseFeatures) -> Tensor | SparseFeatures:
        part = part.to(device)
        return without_inference(part) if isinstance(part, Tensor) else part

    return parts_mapped(moved, data)


def parts_mapped(function: Callable[[Any], Any], data: Data) -> Any:
    """What `function` makes of each tensor; what comes twice is the same twice again."""
    made = {id(part): function(part) for part in {id(part): part for part in parts_of(data)}.values()}
    if isinstance(data, Mapping):
        return {name: made[id(part)] for name, part in data.items()}
    return tuple(made[id(part)] for part in data) if isinstance(data, tuple) else made[id(data)]


def parts_of(data: Data) -> tuple[Tensor | SparseFeatures, ...]:
    """The tensors that data are made of."""
    if isinstance(data, Mapping):
        return tuple(data.values())
    return data if isinstance(data, tuple) else (data,)


def evaluated(loss: Loss, model: nn.Module, batch: Batch) -> Tensor:
    """The losses of samples, which model and loss get a copy of.

    Raises TypeError where they are no tensor, ValueError where that copy is changed.
    """
    given = parts_mapped(torch.clone, batch)
    with calling("the loss", "take the model and samples such as these"):
        losses = loss(model, given)
    if not isinstance(losses, Tensor):
        raise TypeError(
            f"the loss returned {type(losses).__name__}; it must return a tensor of one loss a sample [batch] or per "
            "token [batch, tokens]"
        )
    before, after = ([part for part in parts_of(each) if isinstance(part, Tensor)] for each in (batch, given))
    if any(not torch.equal(one, other) for one, other in zip(before, after, strict=True)):
        raise ValueError(
            "the loss, or the model, changes its input in place: the data would be others from then on; let it work "
            "on a clone()"
        )
    return losses


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Leave every module in the mode, of training or of evaluation, that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def loss_shape(model: nn.Module, loss: Loss, data: Data) -> tuple[int, ...]:
    """Shape of one sample's losses, () or (tokens,), from its first two samples.

    In eval mode, so that no random number is drawn: training with weights and without sees the same dropout.

    Raises ValueError for a loss that is reduced or has more dimensions.
    """
    few = take(data, slice(0, 2))
    with modes_kept(model), torch.no_grad():
        losses = evaluated(loss, model.eval(), few)
    samples = sample_count(few)
    if losses.dim() not in (1, 2) or len(losses) != samples:
        raise ValueError(
            f"the loss returned shape {list(losses.shape)} for {samples} samples; it must return one loss a sample "
            f"[batch] or per token [batch, tokens], unreduced (reduction='none')"
        )
    return tuple(losses.shape[1:])


def present_in(loss: Loss, data: Data, shape: tuple[int, ...]) -> Tensor | None:
    """Which losses of data are there, bool `[samples, *shape]`; None where all are.

    Raises TypeError or ValueError where a loss says it in another form, or none is.
    """
    tell: Callable[[Data], Tensor] | None = getattr(loss, "present", None)
    if tell is None:
        return None
    found = tell(data)
    if not isinstance(found, Tensor) or found.dtype != torch.bool or found.shape[1:] != shape:
        got = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"a loss must say which of its values are data by a bool tensor [batch, tokens], got {got}")
    if not bool(found.any()):
        raise ValueError("no position of the data has a loss: all are masked, or have the label -100")
    return None if bool(found.all()) else found
