"""The attention-only language model of the susceptibility papers (arXiv:2504.18274), with rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionOnlyLM(nn.Module):
    """Causal attention-only transformer: tokens `[batch, T]` (int64) to logits `[batch, T, vocabulary]`.

    Weights of one head are contiguous (`qkv` is `[3, heads, head_width, width]`, `output` is
    `[heads, head_width, width]`), so that restricting a chain to a head moves whole ranges of memory.
    Raises ValueError for an odd `head_width`.
    """

    def __init__(
        self, vocabulary: int, context: int, width: int = 64, heads: int = 4, head_width: int = 16, layers: int = 2
    ) -> None:
        super().__init__()
        if head_width % 2:
            raise ValueError(f"head_width must be even, got {head_width}: rotary positions turn pairs of coordinates")
        self.vocabulary, self.context, self.width, self.heads = vocabulary, context, width, heads
        self.embedding = nn.Parameter(torch.randn(vocabulary, width))
        self.layers = nn.ModuleList(AttentionLayer(width, heads, head_width, 0.4 / layers) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        self.unembedding = nn.Parameter(torch.randn(vocabulary, width) / width**0.5)
        cos, sin = rotary_table(context, head_width)
        self.rotary_cos = nn.Buffer(cos, persistent=False)
        self.rotary_sin = nn.Buffer(sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = F.embedding(tokens, self.embedding)
        cos, sin = self.rotary_cos[: tokens.shape[-1]], self.rotary_sin[: tokens.shape[-1]]
        for layer in self.attention_layers():
            hidden = hidden + layer(hidden, cos, sin)
        return F.linear(self.final_norm(hidden), self.unembedding)

    def attention_layers(self) -> list[AttentionLayer]:
        return [layer for layer in self.layers if isinstance(layer, AttentionLayer)]

    @torch.no_grad()
    def attention_patterns(self, tokens: Tensor) -> Tensor:
        """Attention probabilities `[layers, batch, heads, T, T]` on `tokens` `[batch, T]`."""
        hidden = F.embedding(tokens, self.embedding)
        length = tokens.shape[-1]
        cos, sin = self.rotary_cos[:length], self.rotary_sin[:length]
        future = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        patterns = []
        for layer in self.attention_layers():
            query, key, _ = layer.queries_keys_values(hidden, cos, sin)
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
            patterns.append(scores.masked_fill(future, -torch.inf).softmax(-1))
            hidden = hidden + layer(hidden, cos, sin)
        return torch.stack(patterns)

    def attention_head_parameters(self) -> dict[str, dict[str, list[tuple[int, int]]]]:
        """Head name ("l0h1") to the ranges `(start, stop)` it owns in each flattened parameter."""
        return {
            f"l{index}h{head}": {
                f"layers.{index}.qkv": [
                    ((part * self.heads + head) * layer.head_size, (part * self.heads + head + 1) * layer.head_size)
                    for part in range(3)
                ],
                f"layers.{index}.output": [(head * layer.head_size, (head + 1) * layer.head_size)],
            }
            for index, layer in enumerate(self.attention_layers())
            for head in range(self.heads)
        }


class AttentionLayer(nn.Module):
    """Pre-norm multi-head causal attention without biases; returns the layer's addition to the residual stream.

    `output_scale` < 1 lets the stream start as the embedding, which the heads then learn to read.
    """

    def __init__(self, width: int, heads: int, head_width: int, output_scale: float) -> None:
        super().__init__()
        self.head_size = head_width * width
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Parameter(torch.randn(3, heads, head_width, width) / width**0.5)
        self.output = nn.Parameter(torch.randn(heads, head_width, width) * output_scale / width**0.5)

    def queries_keys_values(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys and values, each `[batch, heads, T, head_width]`."""
        qkv = F.linear(self.norm(hidden), self.qkv.flatten(0, 2))
        query, key, value = qkv.unflatten(-1, self.qkv.shape[:3]).permute(2, 0, 3, 1, 4)
        return rotate(query, cos, sin), rotate(key, cos, sin), value

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query, key, value = self.queries_keys_values(hidden, cos, sin)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).flatten(2) @ self.output.flatten(0, 1)


def rotary_table(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[context, head_width]` of rotary position embedding (arXiv:2104.09864), halves layout."""
    frequency = 10000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency).repeat(1, 2)
    return angle.cos().float(), angle.sin().float()


def rotate(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn `[..., T, head_width]` vectors by their position's rotary angle."""
    first, second = vectors.chunk(2, -1)
    return vectors * cos + torch.cat((-second, first), -1) * sin
