"""A small transformer that classifies sequences at their last token (GPT-2's blocks; arXiv:2507.06445)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning_fast.arguments import Count, checked

PAD = 0

EMBEDDING_SCALE = 0.1
"""Standard deviation of embeddings at the start. At 1 most runs of the parentheses task stay at what the first and the
last token say; at 0.02 they take several times as long."""


@checked
class SequenceClassifier(nn.Module):
    """Causal transformer: tokens `[batch, T]` (int64), 0 after the end of a sequence, to logits `[batch, classes]`.

    Blocks are attention and a GELU layer four times as wide, each with LayerNorm before it. Logits are read at the last
    token alone, so that is all the last block computes. Raises ValueError for a width that is not a multiple of heads.
    """

    def __init__(
        self,
        vocabulary: Count,
        context: Count,
        classes: Count = 2,
        width: Count = 32,
        heads: Count = 4,
        layers: Count = 1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.vocabulary, self.context = vocabulary, context
        self.embedding = nn.Parameter(EMBEDDING_SCALE * torch.randn(vocabulary, width))
        self.positions = nn.Parameter(EMBEDDING_SCALE * torch.randn(context, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        length, written = tokens.shape[1], tokens != PAD
        # Keys and values of the first block depend on token and position alone: they are made once, then looked up.
        place = tokens + self.vocabulary * torch.arange(length, device=tokens.device)
        embedded = (self.positions[:length, None] + self.embedding).flatten(0, 1)
        hidden = F.embedding(place, embedded)
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        keys_values = F.embedding(place, blocks[0].keys_values(embedded))
        causal = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        for block, following in pairwise(blocks):
            hidden = block(hidden, keys_values, causal)
            keys_values = following.keys_values(hidden)
        end = (written.sum(1) - 1)[:, None, None].expand(-1, 1, hidden.shape[2])
        at_end = blocks[-1](hidden.gather(1, end), keys_values, written[:, None, None])
        return self.head(self.final_norm(at_end.squeeze(1)))


class Block(nn.Module):
    """Attention of a stream `[batch, Q, width]` to keys and values `[batch, T, 2·width]` that it may see, then MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def keys_values(self, hidden: Tensor) -> Tensor:
        return self.key_value(self.attention_norm(hidden))

    def forward(self, stream: Tensor, keys_values: Tensor, visible: Tensor) -> Tensor:
        query = self.query(self.attention_norm(stream)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = keys_values.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        gathered = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value
        stream = stream + self.output(gathered.transpose(1, 2).flatten(2))
        return stream + self.contract(F.gelu(self.expand(self.mlp_norm(stream))))
