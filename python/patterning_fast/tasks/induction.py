"""How much of an induction circuit a model has, measured apart from any susceptibility (Olsson et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from patterning_fast.arguments import Count, Seed, checked
from patterning_fast.models.attention_only import AttentionOnlyLM
from patterning_fast.posterior.losses import next_token
from patterning_fast.posterior.observables import Observable

Score = Literal["induction", "previous_token"]

COMPARED = 2**26
"""Pairs of tokens at once."""


@dataclass(frozen=True)
@checked
class RepeatedStrings:
    """Strings of random tokens, each repeated to the end of its context: only induction can predict the repeats."""

    tokens: Tensor
    """int64 `[strings, T + 1]`."""
    periods: Tensor
    """int64 `[strings]`."""

    def to(self, device: str) -> RepeatedStrings:
        """The same on a device."""
        return RepeatedStrings(self.tokens.to(device), self.periods.to(device))

    def repeats(self) -> Tensor:
        """Which next tokens `[strings, T]` a perfect induction circuit predicts."""
        return torch.arange(self.tokens.shape[1] - 1, device=self.tokens.device) >= self.periods[:, None]

    def loss_on_repeats(self, model: nn.Module) -> float:
        """Mean loss [nats] on the repeats."""
        with torch.no_grad():
            return float(next_token(model, self.tokens)[self.repeats()].mean())

    def head_scores(self, model: AttentionOnlyLM) -> dict[str, dict[str, float]]:
        """Mean attention of every head, on the repeats, to the token after the last occurrence ("induction"), and
        anywhere to the token before ("previous_token"): head name to score to value in [0, 1]."""
        with torch.no_grad():
            return self.scores(model.attention_patterns(self.tokens[:, :-1]))

    def scores(self, patterns: Tensor) -> dict[str, dict[str, float]]:
        """`head_scores` from any model's attention to the strings, `[layers, strings, heads, T, T]`."""
        measured = {score: each.tolist() for score, each in self.by_layer(patterns).items()}
        return {
            f"l{layer}h{head}": {score: values[layer][head] for score, values in measured.items()}
            for layer in range(patterns.shape[0])
            for head in range(patterns.shape[2])
        }

    def observable(self, score: Score, head: str | None = None) -> Observable:
        """A score of one head, or the sum of all heads', as a differentiable function of the model.

        Raises ValueError, when it is called, for a head that the model has not.
        """

        def value(model: nn.Module) -> Tensor:
            assert isinstance(model, AttentionOnlyLM)
            measured = self.by_layer(model.attention_patterns(self.tokens[:, :-1]))[score]
            if head is None:
                return measured.sum()
            names = [f"l{layer}h{each}" for layer in range(measured.shape[0]) for each in range(measured.shape[1])]
            if head not in names:
                raise ValueError(f"the model has no head {head!r}; it has {', '.join(names)}")
            return measured.flatten()[names.index(head)]

        return value

    def by_layer(self, patterns: Tensor) -> dict[Score, Tensor]:
        """`scores`, each as a tensor `[layers, heads]`, differentiable."""
        length = patterns.shape[-1]
        queries = torch.arange(length, device=patterns.device)
        source = (queries - self.periods[:, None] + 1).clamp(min=0)
        induction = patterns.gather(-1, source[None, :, None, :, None].expand(*patterns.shape[:3], -1, 1)).squeeze(-1)
        return {
            "induction": induction.movedim(2, -1)[:, self.repeats()].mean(1),
            "previous_token": patterns.diagonal(-1, -2, -1).mean((1, 3)),
        }


@checked
def repeated_strings(alphabet: Tensor, strings: Count, length: Count, seed: Seed) -> RepeatedStrings:
    """`strings` of random tokens of `alphabet`, `length` long, with periods between a sixth and a half of it."""
    generator = np.random.default_rng(seed)
    periods = generator.integers(length // 6, length // 2, strings)
    random = generator.integers(0, len(alphabet), (strings, length))
    tokens = alphabet[torch.from_numpy(random)].gather(1, torch.from_numpy(np.arange(length) % periods[:, None]))
    return RepeatedStrings(tokens, torch.from_numpy(periods))


@checked
def said_twice(passages: Tensor) -> RepeatedStrings:
    """Strings that say a passage of `[strings, T]` once and again, and its first token a third time."""
    tokens = torch.cat([passages, passages, passages[:, :1]], 1)
    return RepeatedStrings(tokens, torch.full((len(passages),), passages.shape[1], dtype=torch.int64))


@checked
def predictable_by_induction(tokens: Tensor, match: Count = 3) -> Tensor:
    """Which next tokens `[contexts, T]` of `[contexts, T + 1]` repeat what followed the same `match` tokens before."""
    length = tokens.shape[1] - 1
    found = torch.zeros(len(tokens), length, dtype=torch.bool, device=tokens.device)
    earlier = torch.ones(length - match + 1, length - match + 1, dtype=torch.bool, device=tokens.device).tril(-1)
    at_once = max(1, COMPARED // length**2)
    for some, into in zip(tokens.split(at_once), found.split(at_once), strict=True):
        same = some[:, :, None] == some[:, None, :]  # [contexts, position, earlier position]
        run = same[:, match - 1 : length, match - 1 : length].clone()
        for back in range(1, match):
            run &= same[:, match - 1 - back : length - back, match - 1 - back : length - back]
        into[:, match - 1 :] = (run & same[:, match:, match:] & earlier).any(-1)
    return found
