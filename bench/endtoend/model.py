"""The function of `patterning_fast.models.AttentionOnlyLM` in plain torch, for contestants that lack the library."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainLM(nn.Module):
    """Token ids `[batch, T]` to logits `[batch, T, vocabulary]`; parameters have the names of AttentionOnlyLM's."""

    def __init__(self, vocabulary: int, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocabulary, width))
        self.layers = nn.ModuleList(PlainAttention(context, width, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        self.unembedding = nn.Parameter(torch.empty(vocabulary, width))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = F.embedding(tokens, self.embedding)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        return F.linear(self.final_norm(hidden), self.unembedding)


class PlainAttention(nn.Module):
    """Pre-norm causal attention with rotary positions and without biases."""

    def __init__(self, context: int, width: int, heads: int) -> None:
        super().__init__()
        head_width = width // heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Parameter(torch.empty(3, heads, head_width, width))
        self.output = nn.Parameter(torch.empty(heads, head_width, width))
        frequency = 10000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
        angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency).repeat(1, 2)
        self.cos, self.sin = (nn.Buffer(each.float(), persistent=False) for each in (angle.cos(), angle.sin()))

    def forward(self, hidden: Tensor) -> Tensor:
        qkv = F.linear(self.norm(hidden), self.qkv.flatten(0, 2)).unflatten(-1, self.qkv.shape[:3])
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.turned(query), self.turned(key), value, is_causal=True)
        return mixed.transpose(1, 2).flatten(2) @ self.output.flatten(0, 1)

    def turned(self, vectors: Tensor) -> Tensor:
        """Queries or keys `[batch, heads, T, head_width]`, each pair of coordinates turned by its position's angle."""
        first, second = vectors.chunk(2, -1)
        length = vectors.shape[-2]
        return vectors * self.cos[:length] + torch.cat((-second, first), -1) * self.sin[:length]
