"""The text of the induction recipe: contexts of four classes, or tokens of domains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patterning_fast.tasks.crossed_text import KINDS, LETTERS, crossed_text
from patterning_fast.tasks.domain_contexts import tokenized
from patterning_fast.tasks.domains import domains
from patterning_fast.tasks.found_text import CHARACTERS, decode
from patterning_fast.tasks.induction import RepeatedStrings, predictable_by_induction, repeated_strings
from patterning_fast.tasks.mini_pile import default_cache

from .settings import CROSSED, Settings

HELD_OUT = 64
"""Contexts, and strings with repeats, that runs are measured on."""

SEEDS_APART = 1_000_003
"""Between the seeds of training text and of text held out."""


@dataclass(frozen=True)
class Text:
    """What the runs of a seed see."""

    vocabulary: int
    tokens: Tensor
    """int64 `[contexts, T + 1]`."""
    classes: np.ndarray
    """Of each context: its class, or its domain."""
    repeat: Tensor
    """Which next tokens `[contexts, T]` an induction circuit predicts, by labels where there are any."""
    held_out: Tensor
    strings: RepeatedStrings
    """Random tokens, that only induction predicts when they are said again."""
    decode: Callable[[Tensor], str]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.tokens.cpu().numpy().tobytes()).hexdigest()


def text_of(settings: Settings, seed: int) -> Text:
    """The text of a seed, on the settings' device."""
    count, length, device = settings.contexts, settings.length, settings.device
    if settings.source == CROSSED:
        made, other = (crossed_text(n, length, at) for n, at in ((count, seed + 1), (HELD_OUT, seed + SEEDS_APART)))
        strings = repeated_strings(torch.from_numpy(LETTERS), HELD_OUT, length + 1, seed + 2).to(device)
        repeat = made.of(KINDS[2])
        return Text(
            len(CHARACTERS), made.tokens.to(device), made.classes, repeat, other.tokens.to(device), strings, decode
        )
    pool = tokenized(domains(settings.source), settings.vocabulary, count * (length + 1), default_cache().parent)
    training = pool.contexts(count, length + 1, seed + 1)
    held_out = pool.contexts(HELD_OUT, length + 1, seed + SEEDS_APART, held_out=True)
    seen = training.tokens[: max(1, 2**20 // length)].unique()
    return Text(
        settings.vocabulary, training.tokens.to(device), training.domain, predictable_by_induction(training.tokens),
        held_out.tokens.to(device), repeated_strings(seen, HELD_OUT, length + 1, seed + 2).to(device),
        lambda tokens: str(pool.tokenizer.decode(tokens.tolist())),
    )  # fmt: skip
