"""The attention-only language model of the susceptibility papers (arXiv:2504.18274), with rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning_fast import ops
from patterning_fast.arguments import Count, Whole, checked
from patterning_fast.models.head_suffix import HeadSuffix
from patterning_fast.ops.reference.rotary_attention import parts as rotated_parts
from patterning_fast.ops.reference.rotary_attention import scores
from patterning_fast.posterior.components import Component
from patterning_fast.posterior.decoders import LogitFactors


@checked
class AttentionOnlyLM(nn.Module):
    """Causal attention-only transformer: tokens `[batch, T]` (int64) to logits `[batch, T, vocabulary]`.

    Weights of one head are contiguous (`qkv` is `[3, heads, head_width, width]`, `output` is
    `[heads, head_width, width]`), so that restricting a chain to a head moves whole ranges of memory.
    Raises ValueError for an odd `head_width`.
    """

    def __init__(
        self,
        vocabulary: Count,
        context: Count,
        width: Count = 64,
        heads: Count = 4,
        head_width: Count = 16,
        layers: Count = 2,
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
        return F.linear(self.final_norm(self.streams(tokens)[-1]), self.unembedding)

    def logit_factors(self, tokens: Tensor) -> LogitFactors:
        """What the logits of tokens `[batch, T]` are the product of."""
        return LogitFactors(self.final_norm(self.streams(tokens)[-1]), self.unembedding)

    def streams(self, tokens: Tensor, layers: Whole | None = None) -> list[Tensor]:
        """The residual stream `[batch, T, width]` before the first layer and after each, or the first few."""
        streams = [F.embedding(tokens, self.embedding)]
        cos, sin = self.rotary(tokens.shape[-1])
        for layer in self.attention_layers()[:layers]:
            streams.append(streams[-1] + layer(streams[-1], cos, sin))
        return streams

    def attention_layers(self) -> list[AttentionLayer]:
        """The layers, or what stands in for them."""
        return list(self.layers)  # type: ignore[arg-type]

    def rotary(self, length: Whole) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the first positions, each `[length, head_width]`."""
        return self.rotary_cos[:length], self.rotary_sin[:length]

    def attention_patterns(self, tokens: Tensor) -> Tensor:
        """Attention probabilities `[layers, batch, heads, T, T]` on `tokens` `[batch, T]`, differentiable."""
        length = tokens.shape[-1]
        cos, sin = self.rotary(length)
        patterns = []
        for layer, hidden in zip(self.attention_layers(), self.streams(tokens), strict=False):
            query, key, _ = rotated_parts(vectors(layer.norm(hidden), layer.qkv), cos, sin)
            patterns.append(scores(query, key).softmax(-1))
        return torch.stack(patterns)

    def attention_head_parameters(self) -> dict[str, dict[str, Tensor]]:
        """Head name ("l0h1") to the flat indices it owns in each parameter."""
        heads = {}
        for index, layer in enumerate(self.attention_layers()):
            qkv, output = (torch.arange(each.numel()).view(each.shape) for each in (layer.qkv, layer.output))
            for head in range(self.heads):
                heads[f"l{index}h{head}"] = {
                    f"layers.{index}.qkv": qkv[:, head].flatten(),
                    f"layers.{index}.output": output[head].flatten(),
                }
        return heads

    def head_suffixes(self, component: Component) -> list[HeadSuffix]:
        """Ways to run only what a component's chains need, the best first: some if it is a single head, else none."""
        for name, owned in self.attention_head_parameters().items():
            if same_coordinates(component, owned):
                layer, head = (int(number) for number in name.removeprefix("l").split("h"))
                last = [True, False] if layer == len(self.layers) - 1 else [False]
                return [HeadSuffix(self, layer, head, recalls_logits) for recalls_logits in last]
        return []


class AttentionLayer(nn.Module):
    """Pre-norm multi-head causal attention without biases; returns the layer's addition to the residual stream.

    `output_scale` < 1 lets the stream start as the embedding, which the heads then learn to read.
    """

    def __init__(self, width: int, heads: int, head_width: int, output_scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Parameter(torch.randn(3, heads, head_width, width) / width**0.5)
        self.output = nn.Parameter(torch.randn(heads, head_width, width) * output_scale / width**0.5)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return self.mix(self.norm(hidden), self.qkv, cos, sin) @ self.output.flatten(0, 1)

    def mix(self, normed: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What heads of weights `qkv` `[3, heads, head_width, width]` gather, `[batch, T, heads · head_width]`."""
        return ops.rotary_attention(vectors(normed, qkv), cos, sin)


def vectors(normed: Tensor, qkv: Tensor) -> Tensor:
    """Queries, keys and values of some heads, `[batch, T, 3, heads, head_width]`."""
    return F.linear(normed, qkv.flatten(0, 2)).unflatten(-1, qkv.shape[:3])


def rotary_table(context: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[context, head_width]` of rotary position embedding (arXiv:2104.09864), halves layout."""
    frequency = 10000.0 ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.outer(torch.arange(context, dtype=torch.float64), frequency).repeat(1, 2)
    return angle.cos().float(), angle.sin().float()


def same_coordinates(component: Component, owned: dict[str, Tensor]) -> bool:
    """Whether a component moves exactly some indices of parameters, of none all."""
    if component.coordinates.keys() != owned.keys():
        return False
    moving = [component.coordinates[name] for name in owned]
    return all(index is not None and torch.equal(index, own) for index, own in zip(moving, owned.values(), strict=True))
