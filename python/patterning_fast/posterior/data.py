"""Samples as tensors: what the library asks of data, wherever data comes in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patterning_fast.posterior.losses import Batch, Loss


def check_data(name: str, data: Batch, model: nn.Module) -> None:
    """Raise TypeError or ValueError unless `data` is samples along a common first dimension that `model` can take.

    Token ids are held to what the model says of itself, where it does: attributes `vocabulary` and `context`, or
    Hugging Face's `config.vocab_size` and `config.max_position_embeddings`.
    """
    tensors = data if isinstance(data, tuple) else (data,)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise TypeError(f"{name} must be a tensor or a tuple of tensors, got {type(data).__name__}")
    lengths = [len(tensor) if tensor.dim() else 0 for tensor in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"{name}: the tensors of a tuple must agree on the number of samples, got {lengths}")
    if lengths[0] == 0 or tensors[0].numel() == 0:
        raise ValueError(f"{name} is empty: it needs at least one sample along the first dimension")
    tokens = tensors[0]
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


def sample_count(data: Batch) -> int:
    """Number of samples."""
    return len(data[0] if isinstance(data, tuple) else data)


def take(data: Batch, which: Tensor | slice) -> Batch:
    """The samples at `which`."""
    return tuple(tensor[which] for tensor in data) if isinstance(data, tuple) else data[which]


def to_device(data: Batch, device: str) -> Batch:
    """The same samples on `device`."""
    return tuple(tensor.to(device) for tensor in data) if isinstance(data, tuple) else data.to(device)


def loss_shape(model: nn.Module, loss: Loss, data: Batch) -> tuple[int, ...]:
    """Shape of one sample's losses, () or (tokens,), from its first two samples; leaves `model` in eval mode.

    In eval mode no random number is drawn: training with weights and without sees the same dropout.

    Raises ValueError for a loss that is reduced or has more dimensions.
    """
    few = take(data, slice(0, 2))
    with torch.no_grad():
        losses = loss(model.eval(), few)
    samples = sample_count(few)
    if losses.dim() not in (1, 2) or len(losses) != samples:
        raise ValueError(
            f"the loss returned shape {list(losses.shape)} for {samples} samples; it must return one loss a sample "
            f"[batch] or per token [batch, tokens], unreduced (reduction='none')"
        )
    return tuple(losses.shape[1:])
