"""`rotary_attention` and its gradient in plain torch: the definition, computed in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `[..., T, head_width]` vectors by their position's rotary angle."""
    first, second = vectors.chunk(2, -1)
    return vectors * cos + torch.cat((-second, first), -1) * sin


def parts(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, rotated keys and values, each `[batch, heads, T, head_width]`."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return rotate(query, cos, sin), rotate(key, cos, sin), value


def scores(query: Tensor, key: Tensor) -> Tensor:
    """Scaled products `[batch, heads, T, T]`, −∞ where the key comes later."""
    length, width = query.shape[-2:]
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    return (query @ key.transpose(-1, -2) / width**0.5).masked_fill(future, -torch.inf)


def mix(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What heads gather `[batch, T, heads, head_width]`, in qkv's own precision."""
    query, key, value = parts(qkv, cos, sin)
    return (scores(query, key).softmax(-1) @ value).transpose(1, 2)


def rotary_attention(qkv: Tensor, cos: Tensor, sin: Tensor, mixed: Tensor, log_sums: Tensor) -> None:
    query, key, value = parts(qkv.double(), cos.double(), sin.double())
    products = scores(query, key)
    log_sums.copy_(products.logsumexp(-1))
    mixed.copy_((products.softmax(-1) @ value).transpose(1, 2))


def rotary_attention_gradient(
    qkv: Tensor, cos: Tensor, sin: Tensor, mixed: Tensor, log_sums: Tensor, grad_mixed: Tensor, grad_qkv: Tensor
) -> None:
    cos, sin = cos.double(), sin.double()
    query, key, value = parts(qkv.double(), cos, sin)
    weights = (scores(query, key) - log_sums.double()[..., None]).exp()
    grad = grad_mixed.double().transpose(1, 2)
    of_mixed = (grad * mixed.double().transpose(1, 2)).sum(-1, keepdim=True)
    grad_scores = weights * (grad @ value.transpose(-1, -2) - of_mixed) / query.shape[-1] ** 0.5
    # A turn is undone by turning back.
    turned = [rotate(each, cos, -sin) for each in (grad_scores @ key, grad_scores.transpose(-1, -2) @ query)]
    grad_qkv.copy_(torch.stack([*turned, weights.transpose(-1, -2) @ grad]).permute(1, 3, 0, 2, 4))
