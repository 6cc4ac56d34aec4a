"""Small models and data that several tests use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import patterning_fast as pf
from patterning_fast.models.attention_only import AttentionOnlyLM

VOCABULARY, CONTEXT = 11, 8


def language_model(seed: int = 0) -> AttentionOnlyLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttentionOnlyLM(VOCABULARY, CONTEXT, width=8, heads=2, head_width=4, layers=2)


def tokens(samples: int = 12, seed: int = 0, length: int = CONTEXT + 1) -> Tensor:
    return torch.randint(VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(seed))


def language_posterior(**changes: object) -> pf.LocalPosterior:
    arguments: dict[str, object] = {"n_beta": 10.0, "localization": 100.0}
    return pf.LocalPosterior(language_model(), pf.losses.next_token, tokens(), **arguments | changes)  # type: ignore[arg-type]


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x))
