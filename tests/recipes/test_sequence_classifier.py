"""The small transformer against one written with torch's own layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patterning_fast.models.sequence_classifier import Block, SequenceClassifier


def block(weights: Block, stream: Tensor) -> Tensor:
    """A block over all positions."""
    normed = weights.attention_norm(stream)
    parts = torch.cat((weights.query(normed), weights.key_value(normed)), -1).chunk(3, -1)
    query, key, value = (part.unflatten(-1, (weights.heads, -1)).transpose(1, 2) for part in parts)
    gathered = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    stream = stream + weights.output(gathered.transpose(1, 2).flatten(2))
    return stream + weights.contract(F.gelu(weights.expand(weights.mlp_norm(stream))))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_logits_are_those_of_all_positions_computed(layers: int) -> None:
    torch.manual_seed(layers)
    model = SequenceClassifier(7, context=9, classes=3, width=12, heads=3, layers=layers)
    lengths = [1, 4, 9, 6]
    tokens = torch.zeros(4, 9, dtype=torch.int64)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = torch.randint(1, 7, (length,))
    for row, length, logits in zip(tokens, lengths, model(tokens), strict=True):
        stream = (model.embedding[row[:length]] + model.positions[:length])[None]
        for weights in model.blocks:
            assert isinstance(weights, Block)
            stream = block(weights, stream)
        # Sums of up to 48 float32 products of size 1.
        assert torch.allclose(logits, model.head(model.final_norm(stream[0, -1])), atol=1e-5)


def test_widths_must_split_into_heads() -> None:
    with pytest.raises(ValueError, match="width must be a multiple of heads, got 10 and 4"):
        SequenceClassifier(5, context=9, width=10, heads=4)
