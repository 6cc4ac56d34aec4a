"""The text of the induction recipe: characters of a small mixture, or tokens of domains."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from patterning_fast.tasks.domain_contexts import tokenized
from patterning_fast.tasks.domains import domains
from patterning_fast.tasks.found_text import CHARACTERS, Contexts, decode, encode, found_text_contexts
from patterning_fast.tasks.induction import RepeatedStrings, repeated_strings
from patterning_fast.tasks.mini_pile import default_cache

from .settings import MIXTURE, Settings

HELD_OUT = 64
"""Contexts, and strings with repeats, that runs are measured on."""

SEEDS_APART = 1_000_003
"""Between the seeds of training text and of text held out."""


@dataclass(frozen=True)
class Text:
    """What the runs of a seed see."""

    vocabulary: int
    training: Contexts
    held_out: Contexts
    repeats: RepeatedStrings
    """Random tokens, that only induction predicts when they are said again."""
    decode: Callable[[Tensor], str]

    def to(self, device: str) -> Text:
        """The same with its tokens on a device."""
        return replace(
            self,
            training=replace(self.training, tokens=self.training.tokens.to(device)),
            held_out=replace(self.held_out, tokens=self.held_out.tokens.to(device)),
            repeats=self.repeats.to(device),
        )


def text_of(settings: Settings, seed: int) -> Text:
    """The text of a seed, on the settings' device."""
    count, length = settings.contexts, settings.length
    if settings.source == MIXTURE:
        others = dict.fromkeys(("code", "reference", "metadata"), (1.0 - settings.quoted) / 3)
        shares = others | {"quoted": settings.quoted}
        letters = torch.from_numpy(encode(string.ascii_letters + string.digits + "-_"))
        found = Text(
            len(CHARACTERS),
            found_text_contexts(count, length, shares, seed + 1),
            found_text_contexts(HELD_OUT, length, shares, seed + SEEDS_APART),
            repeated_strings(letters, HELD_OUT, length, seed + 2),
            decode,
        )
    else:
        pool = tokenized(domains(settings.source), settings.vocabulary, count * length, default_cache().parent)
        training = pool.contexts(count, length, seed + 1)
        seen = training.tokens[: max(1, 2**20 // length)].unique()
        found = Text(
            settings.vocabulary,
            training,
            pool.contexts(HELD_OUT, length, seed + SEEDS_APART, held_out=True),
            repeated_strings(seen, HELD_OUT, length, seed + 2),
            lambda tokens: str(pool.tokenizer.decode(tokens.tolist())),
        )
    return found.to(settings.device)
